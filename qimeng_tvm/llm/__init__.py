"""Language models as ordinary, doubtful helpers: clients, transcripts, prompts. Nothing that they say is believed."""

from qimeng_tvm.llm.budget import Budget, Metered
from qimeng_tvm.llm.choice import choose_client
from qimeng_tvm.llm.messages import Client, Message, Reply, Request, Usage

__all__ = ["Budget", "Client", "Message", "Metered", "Reply", "Request", "Usage", "choose_client"]
