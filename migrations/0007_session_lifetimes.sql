-- Sessions end by themselves: when they have heard nothing for too long, and when they are too old. And who mirrors
-- sessions elsewhere learns which have changed, without looking at all of them.
alter table sessions
    -- 0 is never.
    add column idle_timeout_ms bigint not null default 0 check (idle_timeout_ms >= 0),
    -- The end at the latest; null is never.
    add column expire_time timestamptz,
    add column terminate_time timestamptz,
    -- When the session is to be ended as it stands now; null is never.
    add column due_time timestamptz,
    -- The transaction that changed the state last; numbers of transactions only grow, in the order in which they began.
    add column change_number bigint not null default 0;

update sessions set terminate_time = update_time where state = 'terminated';

-- What follows from a new state. A trigger, so that an older release of the front keeps to it too; it does nothing for the
-- appends within a turn, which change no state and so no index.
create function sessions_turn() returns trigger
    language plpgsql as $$
begin
    new.change_number := pg_current_xact_id()::text::bigint;
    if new.state = 'terminated' then
        new.terminate_time := new.update_time;
        new.due_time := null;
    elsif new.state = 'running' or new.idle_timeout_ms = 0 then
        new.due_time := new.expire_time;
    else
        new.due_time := least(new.expire_time, new.update_time + new.idle_timeout_ms * interval '1 millisecond');
    end if;
    return new;
end
$$;

create trigger begins before insert on sessions for each row execute function sessions_turn();
create trigger turns before update of state on sessions for each row
    when (old.state is distinct from new.state) execute function sessions_turn();

create index sessions_due on sessions (due_time) where due_time is not null;
create index sessions_changed on sessions (change_number, session_id);

-- Row security is forced on the owner too. It sees rows without a tenant only while one of the functions below says so:
-- they say it by themselves, since who is no superuser may not tie a setting of ours to a function.
create policy owner_looks_across on sessions for select to current_user
    using (current_setting('croft.across', true) = 'ids');

-- Whoever ends sessions whose time is up does so for all tenants, and needs to know no more of them than ids.
create function croft_due_sessions(as_of timestamptz, rows_max bigint) returns table (tenant_id uuid, session_id uuid)
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
begin
    perform set_config('croft.across', 'ids', true);
    return query
        select s.tenant_id, s.session_id
        from sessions s
        where s.due_time <= as_of
        order by s.due_time, s.tenant_id, s.session_id
        limit rows_max;
    perform set_config('croft.across', '', true);
end
$$;

-- Sessions of all tenants whose state has changed, in the order of their changes' numbers.
create function croft_changed_sessions(after_number bigint, after_session uuid, rows_max bigint)
    returns table (tenant_id uuid, session_id uuid, change_number bigint)
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
begin
    perform set_config('croft.across', 'ids', true);
    return query
        select s.tenant_id, s.session_id, s.change_number
        from sessions s
        where (s.change_number, s.session_id) > (after_number, after_session)
        order by s.change_number, s.session_id
        limit rows_max;
    perform set_config('croft.across', '', true);
end
$$;

revoke execute on function croft_due_sessions(timestamptz, bigint) from public;
revoke execute on function croft_changed_sessions(bigint, uuid, bigint) from public;
grant execute on function croft_due_sessions(timestamptz, bigint) to croft_request;
grant execute on function croft_changed_sessions(bigint, uuid, bigint) to croft_request;
