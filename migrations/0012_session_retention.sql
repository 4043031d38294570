-- Sessions that have ended are kept for a time and then erased, each as a whole: a reader finds all of a session or nothing.
-- Usage and audit stay: the books must balance.

-- Finds a tenant's ended sessions, longest ended first. One entry a session, made as it ends.
create index sessions_ended on sessions (tenant_id, terminate_time) where terminate_time is not null;

-- Erases sessions of the transaction's tenant that ended before then, so many at most, and tells how many. Whoever else erases
-- at this moment takes others. What ended within the hour is left alone, whatever a mistake may ask for. A session's
-- checkpoint and lease go with it.
create function croft_erase_ended_sessions(ended_before timestamptz, sessions_max bigint) returns bigint
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
    delete from sessions s where s.tenant_id = croft_tenant() and s.session_id = any (wanted);
    return cardinality(wanted);
end
$$;

revoke execute on function croft_erase_ended_sessions(timestamptz, bigint) from public;
grant execute on function croft_erase_ended_sessions(timestamptz, bigint) to croft_request;
