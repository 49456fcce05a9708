"""The contract of ``schedules/``, block analysis and the steps that rules are made of."""

from qimeng_tvm.schedule.contract import BlockInfo, Choose, Decision, ScheduleRule, SearchSpace, Value, Values

__all__ = ["BlockInfo", "Choose", "Decision", "ScheduleRule", "SearchSpace", "Value", "Values"]
