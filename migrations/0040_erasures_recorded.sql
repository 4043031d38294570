-- That sessions were erased was recorded once all were that there were, by how many they had been: a front that was killed before had
-- erased the sessions and recorded none of them. Now each session that is gone has a record, in the transaction in which it goes.
--
-- As before, with records where these are wanted. Where the end of the tenant's audit log is held for longer than a lock is waited for, what was
-- erased of events stays erased; the sessions are out of sight, and go with a later call.
create function croft_erase_ended(
    ended_before timestamptz, sessions_max bigint, events_max bigint, with_records boolean,
    out sessions_erased bigint, out events_erased bigint
)
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
declare
    wanted uuid[];
    fresh uuid[];
    gone uuid[] := '{}';
    -- As texts, which is how what refers to a session without a key writes it.
    subjects text[];
    id uuid;
    room bigint := events_max;
    slice bigint;
begin
    wanted := array(
        select s.session_id from sessions s
        where s.tenant_id = croft_tenant() and s.terminate_time < least(ended_before, now() - interval '1 hour')
        -- Those that are out of sight go first, one after another.
        order by s.terminate_time, s.session_id
        limit sessions_max
        for update skip locked
    );
    fresh := array(
        select s.session_id from sessions s
        where s.tenant_id = croft_tenant() and s.session_id = any (wanted) and s.erase_time is null
    );
    if cardinality(fresh) > 0 then
        subjects := array(select f::text from unnest(fresh) f);
        update sessions s
            set erase_time = now(), terminate_time = '-infinity', parent_id = null, parent_turn = null, parent_call = null
            where s.tenant_id = croft_tenant() and s.session_id = any (fresh);
        delete from idempotency_keys k
            where k.tenant_id = croft_tenant() and k.scope = 'sessions' and k.session_id = any (fresh);
        delete from idempotency_keys k
            where k.tenant_id = croft_tenant() and k.scope = any (array(select 'sessions/' || f from unnest(subjects) f));
        delete from checkpoints c where c.tenant_id = croft_tenant() and c.session_id = any (fresh);
        delete from leases l where l.tenant_id = croft_tenant() and l.session_id = any (fresh);
        delete from usage_counters c where c.tenant_id = croft_tenant() and c.scope = 'session' and c.subject = any (subjects);
        delete from budgets b where b.tenant_id = croft_tenant() and b.scope = 'session' and b.subject = any (subjects);
        delete from budget_alerts a where a.tenant_id = croft_tenant() and a.scope = 'session' and a.subject = any (subjects);
    end if;
    foreach id in array wanted loop
        delete from events where ctid = any (array(
            select e.ctid from events e where e.tenant_id = croft_tenant() and e.session_id = id order by e.seq desc limit room
        ));
        get diagnostics slice = row_count;
        room := room - slice;
        exit when room <= 0;
        gone := gone || id;
    end loop;
    if cardinality(gone) > 0 then
        begin
            delete from sessions s where s.tenant_id = croft_tenant() and s.session_id = any (gone);
            if with_records then
                perform croft_append_audit(
                    array(select croft_tenant() from unnest(gone)), array(select 'front' from unnest(gone)),
                    array(select 'session.erase' from unnest(gone)),
                    array(select 'sessions/' || g.id from unnest(gone) with ordinality as g (id, place) order by g.place),
                    array(select 'ok' from unnest(gone))
                );
            end if;
        exception when lock_not_available then
            gone := '{}';
        end;
    end if;
    sessions_erased := cardinality(gone);
    events_erased := events_max - room;
end
$$;

revoke execute on function croft_erase_ended(timestamptz, bigint, bigint, boolean) from public;
grant execute on function croft_erase_ended(timestamptz, bigint, bigint, boolean) to croft_request;

-- Fronts of releases before record by themselves.
create or replace function croft_erase_ended(
    ended_before timestamptz, sessions_max bigint, events_max bigint, out sessions_erased bigint, out events_erased bigint
)
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
begin
    select e.sessions_erased, e.events_erased into sessions_erased, events_erased
    from croft_erase_ended(ended_before, sessions_max, events_max, false) e;
end
$$;
