"""The agent's hold on a process that fetches."""

from node_agent.fetch_child import fetch_child


async def test_what_is_said_to_a_child_that_has_ended_is_lost_and_no_error():
    """The control plane's word may come while the child is waited for: it ended an agent."""
    async with fetch_child("node_agent.fetch_version", {"not": "a request"}) as child:
        # It dies of that.
        assert [line async for line in child.lines()] == []
        child.tell({"peers": []})
    child.tell({"peers": []})
    child.kill()
