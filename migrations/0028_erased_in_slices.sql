-- A session that ended long ago was erased by one statement a table: one with very many events took longer than a statement may, was
-- tried again first each time, and stood before all others of its tenant for ever. Now it goes out of everybody's sight first, with
-- all that is small, and its events go in slices, the newest first, so that whoever still reads them with the release before this one
-- finds a shorter log and no hole.
-- Its budgets and their alerts, which nothing took away so far, go with it: a tenant has room for a thousand.
alter table sessions add column erase_time timestamptz;

-- Without statistics of it, what the policy below asks of a row is taken for rare, and lists go through whole tables.
analyze sessions (erase_time);

-- What is being erased is as what never was.
alter policy one_tenant on sessions using (tenant_id = croft_tenant() and erase_time is null);

create policy owner_erases on checkpoints to current_user using (tenant_id = croft_tenant());
create policy owner_erases on leases to current_user using (tenant_id = croft_tenant());
create policy owner_erases on budgets to current_user using (tenant_id = croft_tenant());
create policy owner_erases on budget_alerts to current_user using (tenant_id = croft_tenant());

-- Erases sessions of the transaction's tenant that ended before then, so many of them and of their events at most, and tells how many
-- sessions are gone and how many events went; neither, when nothing is left to do. Whoever else erases at this moment takes others.
-- What ended within the hour is left alone, whatever a mistake may ask for.
--
-- One that is out of sight has ended before all others, and so it is erased to its end before them, whatever time is asked for. It is
-- nobody's sub-agent any more: its call may have another.
create function croft_erase_ended(
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
        delete from idempotency_keys k where k.tenant_id = croft_tenant() and k.session_id = any (fresh)
            and (k.scope = 'sessions' or k.scope = any (array(select 'sessions/' || f from unnest(subjects) f)));
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

revoke execute on function croft_erase_ended(timestamptz, bigint, bigint) from public;
grant execute on function croft_erase_ended(timestamptz, bigint, bigint) to croft_request;

-- Fronts of the release before this one go on with it until they are replaced, and shall leave no budgets behind either.
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
    delete from budgets b where b.tenant_id = croft_tenant() and b.scope = 'session'
        and b.subject = any (array(select w::text from unnest(wanted) w));
    delete from budget_alerts a where a.tenant_id = croft_tenant() and a.scope = 'session'
        and a.subject = any (array(select w::text from unnest(wanted) w));
    delete from sessions s where s.tenant_id = croft_tenant() and s.session_id = any (wanted);
    return cardinality(wanted);
end
$$;
