-- A database that was put back on another server brings the numbers of that one's transactions along, and its counter may be far behind
-- them: until it had passed them, each look for changes found every session that there was. A number that no transaction has had here
-- is none of a change that is to be told; and what is changed here has one of here.
create or replace function croft_changed_sessions(after_number bigint, after_session uuid, rows_max bigint)
    returns table (tenant_id uuid, session_id uuid, change_number bigint)
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
begin
    perform set_config('croft.across', 'ids', true);
    return query
        select s.tenant_id, s.session_id, s.change_number
        from sessions s
        where (s.change_number, s.session_id) > (after_number, after_session)
            -- Of the same snapshot: what it can see has a number below this one.
            and s.change_number < pg_snapshot_xmax(pg_current_snapshot())::text::bigint
        order by s.change_number, s.session_id
        limit rows_max;
    perform set_config('croft.across', '', true);
end
$$;

-- Whoever looks for changes was told again, at each look, of all that had come behind the oldest transaction that still ran; and one that
-- takes an hour, in whatever database of the server, makes that very many. Those that could not be seen at the last look are the ones that
-- ran then, which have a number each, and those that began after it.
create function croft_session_changes(
    first_number bigint, open_numbers bigint[], after_number bigint, after_session uuid, rows_max bigint
) returns table (tenant_id uuid, session_id uuid, change_number bigint)
    language plpgsql volatile security definer set search_path = public, pg_temp as $$
begin
    perform set_config('croft.across', 'ids', true);
    return query
        (
            select s.tenant_id, s.session_id, s.change_number
            from sessions s
            where s.change_number = any (open_numbers) and s.change_number < first_number
                and (s.change_number, s.session_id) > (after_number, after_session)
            order by s.change_number, s.session_id
            limit rows_max
        ) union all (
            select s.tenant_id, s.session_id, s.change_number
            from sessions s
            where s.change_number >= first_number
                and (s.change_number, s.session_id) > (after_number, after_session)
                and s.change_number < pg_snapshot_xmax(pg_current_snapshot())::text::bigint
            order by s.change_number, s.session_id
            limit rows_max
        )
        order by 3, 2
        limit rows_max;
    perform set_config('croft.across', '', true);
end
$$;

revoke execute on function croft_session_changes(bigint, bigint[], bigint, uuid, bigint) from public;
grant execute on function croft_session_changes(bigint, bigint[], bigint, uuid, bigint) to croft_request;
