-- A sub-agent's session hangs on the call that it answers: there is one for each call, it ends with its caller, and what it uses
-- counts against the budgets of all sessions above it.
alter table sessions
    -- The session whose agent called it, the turn, and the call; null is nobody's.
    add column parent_id uuid,
    add column parent_turn uuid,
    add column parent_call text collate "C",
    -- The sessions above it, nearest first, each with the budget that its agent gave it: see `session::family`.
    add column lineage jsonb not null default '[]',
    add check ((parent_id is null) = (parent_turn is null) and (parent_id is null) = (parent_call is null));

-- Whoever asks again for a call, from whichever front, finds its session.
create unique index sessions_children on sessions (tenant_id, parent_id, parent_call) where parent_id is not null;
-- Those that may have outlived their caller.
create index sessions_children_open on sessions (parent_id) where parent_id is not null and state <> 'terminated';

-- What the sub-agents below a session used; what it used itself is in its own row.
alter table usage_counters drop constraint usage_counters_scope_check;
alter table usage_counters add constraint usage_counters_scope_check check (scope in ('tenant', 'agent', 'session'));

-- Open sessions of sub-agents whose call is over: their caller has ended, or is gone, or is not in that turn any more, and whoever
-- ended the call was lost before it could end them.
create function croft_orphaned_sessions(rows_max bigint) returns table (tenant_id uuid, session_id uuid)
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
begin
    perform set_config('croft.across', 'ids', true);
    return query
        select s.tenant_id, s.session_id
        from sessions s
        where s.parent_id is not null and s.state <> 'terminated' and not exists (
            select 1 from sessions p
            where p.tenant_id = s.tenant_id and p.session_id = s.parent_id and p.state = 'running'
                and p.turn_id = s.parent_turn::text
        )
        limit rows_max;
    perform set_config('croft.across', '', true);
end
$$;

revoke execute on function croft_orphaned_sessions(bigint) from public;
grant execute on function croft_orphaned_sessions(bigint) to croft_request;

-- With a session goes what was counted for it.
create or replace function croft_erase_ended_sessions(ended_before timestamptz, sessions_max bigint) returns bigint
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
declare
    wanted uuid[];
begin
    wanted := array(
        select s.session_id from sessions s
        where s.tenant_id = croft_tenant() and s.terminate_time < least(ended_before, now() - interval '1 hour')
        order by s.terminate_time
        limit sessions_max
        for update skip locked
    );
    delete from events e where e.tenant_id = croft_tenant() and e.session_id = any (wanted);
    delete from idempotency_keys k where k.tenant_id = croft_tenant() and k.session_id = any (wanted)
        and (k.scope = 'sessions' or k.scope = any (array(select 'sessions/' || w::text from unnest(wanted) w)));
    delete from usage_counters c where c.tenant_id = croft_tenant() and c.scope = 'session'
        and c.subject = any (array(select w::text from unnest(wanted) w));
    delete from sessions s where s.tenant_id = croft_tenant() and s.session_id = any (wanted);
    return cardinality(wanted);
end
$$;
