-- To find the key that a session was created with, when it is erased, all such keys of its tenant were looked through: a day's, for each
-- slice of sessions. Keys of messages are found by their scope, and cost nothing more.
--
-- In a migration of its own, which keeps writers of this one table waiting while it runs. The table has the keys of a day. An index that is made
-- `concurrently` would wait for every transaction that is open, such as a dump's, and stay behind as one that is good for nothing when that
-- takes too long.
create index idempotency_keys_creates on idempotency_keys (tenant_id, session_id) where scope = 'sessions';

-- As before, but for the keys.
create or replace function croft_erase_ended(
    ended_before timestamptz, sessions_max bigint, events_max bigint, out sessions_erased bigint, out events_erased bigint
)
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
declare
    wanted uuid[];
    fresh uuid[];
    -- As texts, which is how what refers to a session without a key writes it.
    subjects text[];
    id uuid;
    room bigint := events_max;
    gone bigint;
begin
    sessions_erased := 0;
    wanted := array(
        select s.session_id from sessions s
        where s.tenant_id = croft_tenant() and s.terminate_time < least(ended_before, now() - interval '1 hour')
        order by s.terminate_time
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
        get diagnostics gone = row_count;
        room := room - gone;
        exit when room <= 0;
        delete from sessions s where s.tenant_id = croft_tenant() and s.session_id = id;
        sessions_erased := sessions_erased + 1;
    end loop;
    events_erased := events_max - room;
end
$$;
