-- Whoever lists the questions that wait for a person finds the sessions that were left with one, newest first, without a look at all of a tenant's.
-- Those that run are found by their leases.
--
-- An entry is made by a turn that ends with a question, and goes with the next turn or the session's end: both are changes of the state, which
-- other indexes have in their conditions, so that nothing else costs any more than before.
--
-- In a migration of its own, which keeps writers of this one table waiting while it runs: it reads the table once, and keeps little of it. Why not
-- `concurrently` stands in `0032_keys_of_gone_sessions.sql`.
create index sessions_asking on sessions (tenant_id, session_id desc) where state = 'idle' and last_stop_reason = 'requires_action';
