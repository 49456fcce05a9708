"""The loops that have a model write families and rules, and the tasks that they are given."""
