-- A transaction of a front was three or four round trips: it began and took its locks, did its work, added up what was used,
-- committed. Those that a session's opening and a turn consist of are one call here, which the server begins and commits by
-- itself. These functions may do no more than their caller: each takes on croft_request and one tenant first, as every transaction
-- of the front does, and row security, which is forced, holds it to that. Their statements are each of their own, so that what
-- follows the locks sees all that was committed before they were ours.
--
-- A caller that gave up while its transaction began may have left it open. What is done in it would be told and never committed: so
-- the two that are transactions refuse it, and know it by its role.
--
-- Each statement is planned once a connection. Left to itself the planner believes that a plan for the arguments at hand is worth
-- making each time, since it takes arrays of unknown length for long ones; for statements like these, to plan takes several times
-- as long as to carry out. A plan that is kept must be good when the tables have grown: rows are looked up by key in any case.

-- Adds rows to the ledger, to its sums and to their sessions' totals, of those that are new. Of the second argument's sessions alone.
create function croft_meter(
    uuid, uuid[], uuid[], text[], text[], text[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[],
    text[], text[], boolean[], timestamptz[], text[]
) returns table (
    session_id uuid, attempts bigint, unpriced_attempts bigint, input_uncached_tokens bigint, cache_read_tokens bigint,
    cache_write_5m_tokens bigint, cache_write_1h_tokens bigint, output_tokens bigint, reasoning_tokens bigint,
    cost_nano_usd bigint
)
    language plpgsql volatile set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
#variable_conflict use_column
begin
    return query
    with metered as (
        insert into llm_usage_events (
            tenant_id, session_id, agent, attempt_id, provider, model, input_uncached_tokens, cache_read_tokens,
            cache_write_5m_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens, cost_nano_usd, latency_ms,
            finish_reason, error_class, usage_estimated, create_time, mode
        )
        select $1, s.session_id, s.agent_name, new.attempt_id, new.provider, new.model, new.input_uncached_tokens,
            new.cache_read_tokens, new.cache_write_5m_tokens, new.cache_write_1h_tokens, new.output_tokens,
            new.reasoning_tokens, new.cost_nano_usd, new.latency_ms, new.finish_reason, new.error_class, new.usage_estimated,
            new.create_time, new.mode
        from unnest($3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19) as new (
            session_id, attempt_id, provider, model, input_uncached_tokens, cache_read_tokens, cache_write_5m_tokens,
            cache_write_1h_tokens, output_tokens, reasoning_tokens, cost_nano_usd, latency_ms, finish_reason, error_class,
            usage_estimated, create_time, mode
        )
        join sessions s on s.tenant_id = $1 and s.session_id = new.session_id
        where new.session_id = any($2)
        on conflict (tenant_id, attempt_id) do nothing
        returning *
    ), counted as (
        insert into usage_counters as c (tenant_id, scope, subject, period, slot, changes, nano_usd, tokens)
        select $1, s.scope, s.subject, p.period, pg_backend_pid() % 16, count(*),
            coalesce(sum(m.cost_nano_usd), 0)::bigint,
            sum(m.input_uncached_tokens + m.cache_read_tokens + m.cache_write_5m_tokens + m.cache_write_1h_tokens
                + m.output_tokens)::bigint
        from metered m
        cross join lateral (
            select 'tenant' as scope, '' as subject
            union all select 'agent', m.agent
            union all
            select 'session', above.value ->> 'session'
            from sessions o, jsonb_array_elements(o.lineage) as above
            where o.tenant_id = $1 and o.session_id = m.session_id
        ) as s
        cross join lateral unnest(croft_periods(m.create_time)) as p (period)
        group by s.scope, s.subject, p.period
        -- In one order, so that two transactions don't wait for each other.
        order by s.scope, s.subject, p.period
        on conflict (tenant_id, scope, subject, period, slot) do update set changes = c.changes + excluded.changes,
            nano_usd = c.nano_usd + excluded.nano_usd, tokens = c.tokens + excluded.tokens
    ), total as (
        select session_id, count(*) as attempts, count(*) filter (where cost_nano_usd is null) as unpriced_attempts,
            coalesce(sum(input_uncached_tokens), 0)::bigint as input_uncached_tokens,
            coalesce(sum(cache_read_tokens), 0)::bigint as cache_read_tokens,
            coalesce(sum(cache_write_5m_tokens), 0)::bigint as cache_write_5m_tokens,
            coalesce(sum(cache_write_1h_tokens), 0)::bigint as cache_write_1h_tokens,
            coalesce(sum(output_tokens), 0)::bigint as output_tokens,
            coalesce(sum(reasoning_tokens), 0)::bigint as reasoning_tokens,
            coalesce(sum(cost_nano_usd), 0)::bigint as cost_nano_usd
        from metered group by session_id
    )
    update sessions s set
        attempts = s.attempts + total.attempts,
        unpriced_attempts = s.unpriced_attempts + total.unpriced_attempts,
        input_uncached_tokens = s.input_uncached_tokens + total.input_uncached_tokens,
        cache_read_tokens = s.cache_read_tokens + total.cache_read_tokens,
        cache_write_5m_tokens = s.cache_write_5m_tokens + total.cache_write_5m_tokens,
        cache_write_1h_tokens = s.cache_write_1h_tokens + total.cache_write_1h_tokens,
        output_tokens = s.output_tokens + total.output_tokens,
        reasoning_tokens = s.reasoning_tokens + total.reasoning_tokens,
        cost_nano_usd = s.cost_nano_usd + total.cost_nano_usd
    from total
    where s.tenant_id = $1 and s.session_id = total.session_id
    returning s.session_id, s.attempts, s.unpriced_attempts, s.input_uncached_tokens, s.cache_read_tokens, s.cache_write_5m_tokens,
        s.cache_write_1h_tokens, s.output_tokens, s.reasoning_tokens, s.cost_nano_usd;
end
$$;

-- What was stored of one append of many. From `tenant_id` on it is the session, for who took its lease.
create type croft_appended as (
    place bigint, session_id uuid, base bigint, lease_epoch bigint, checkpoint_seq bigint, checkpoint bytea,
    tenant_id uuid, tenant_name text, state text, agent bytea, config_hash text, labels text, create_time timestamptz,
    update_time timestamptz, last_seq bigint, input_seq bigint, newest_input_seq bigint, turn_id text, worker text,
    terminate_reason text, last_stop_reason text, attempts bigint, unpriced_attempts bigint, input_uncached_tokens bigint,
    cache_read_tokens bigint, cache_write_5m_tokens bigint, cache_write_1h_tokens bigint, output_tokens bigint,
    reasoning_tokens bigint, cost_nano_usd bigint, idle_timeout_ms bigint, expire_time timestamptz, terminate_time timestamptz,
    parent_id uuid, parent_turn uuid, parent_call text, lineage text
);

-- Appends to sessions of one tenant, each to another session. The update takes the next numbers, and checks the state and the
-- lease's epoch on the row as it stands; the rest hangs on its result: an append whose session is not to be changed has no row in
-- `numbered`, and nothing of it is stored. A turn's first append takes the lease and its last gives it up, unless a message waits.
--
-- The arguments are the tenant; of each append the session, its events' number, state, worker, turn, stop reason, newest input,
-- input, time, epoch, checkpoint, holder, lease's length in microseconds, whether it gives the lease up and whether it may wait
-- beside a turn; of each event the append's place, its own place there, kind, turn, time and payload; and of each attempt at a
-- model what croft_meter takes.
create function croft_append(
    uuid, uuid[], bigint[], text[], text[], text[], text[], bigint[], bigint[], timestamptz[], bigint[], bytea[], text[], bigint[],
    boolean[], boolean[], bigint[], bigint[], text[], uuid[], timestamptz[], bytea[], uuid[], text[], text[], text[], bigint[],
    bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], text[], text[], boolean[], timestamptz[], text[]
) returns setof croft_appended
    language plpgsql volatile set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
#variable_conflict use_column
declare
    appended croft_appended;
    stored_ids uuid[] := '{}';
begin
    if current_user <> session_user then
        raise exception 'a transaction is open' using errcode = 'active_sql_transaction';
    end if;
    perform set_config('role', 'croft_request', true), set_config('croft.tenant', $1::text, true);
    -- In the order of the ids, so that two who want several don't wait for each other.
    perform 1 from sessions where tenant_id = $1 and session_id = any($2) order by session_id for no key update;
    for appended in
        with asked as materialized (
            select * from unnest(
                $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15
            ) with ordinality as asked (
                session_id, events, state, worker, turn_id, stop_reason, newest_input, input_seq, update_time, epoch,
                checkpoint, holder, ttl, releases, place
            )
        ), taken as (
            insert into leases as old (tenant_id, session_id, epoch, holder, expire_time)
            select $1, asked.session_id, 1, asked.holder, clock_timestamp() + asked.ttl * interval '1 microsecond'
            from asked
            join sessions s on s.tenant_id = $1 and s.session_id = asked.session_id and s.state <> 'terminated'
            where asked.holder is not null
            on conflict (tenant_id, session_id) do update
                set epoch = old.epoch + 1, holder = excluded.holder, expire_time = excluded.expire_time
                where old.holder is null or old.expire_time <= clock_timestamp()
            returning session_id, epoch
        ), given as (
            update leases l set holder = null, expire_time = null
            from asked
            join sessions s on s.tenant_id = $1 and s.session_id = asked.session_id
            where asked.releases and l.tenant_id = $1 and l.session_id = asked.session_id and l.epoch = asked.epoch
                and s.state <> 'terminated' and s.lease_epoch = asked.epoch
                and coalesce(s.last_seq + asked.newest_input, s.newest_input_seq) <= greatest(s.input_seq, asked.input_seq)
            returning l.session_id
        ), numbered as (
            update sessions s set
                last_seq = s.last_seq + asked.events,
                state = coalesce(asked.state, s.state),
                worker = coalesce(asked.worker, s.worker),
                turn_id = coalesce(asked.turn_id, s.turn_id),
                last_stop_reason = coalesce(asked.stop_reason, s.last_stop_reason),
                newest_input_seq = coalesce(s.last_seq + asked.newest_input, s.newest_input_seq),
                input_seq = greatest(s.input_seq, asked.input_seq),
                update_time = asked.update_time,
                lease_epoch = case
                    when given.session_id is not null then null
                    else coalesce(taken.epoch, s.lease_epoch)
                end
            from asked
            left join taken on taken.session_id = asked.session_id
            left join given on given.session_id = asked.session_id
            where s.tenant_id = $1 and s.session_id = asked.session_id and s.state <> 'terminated'
                and (asked.epoch is null or s.lease_epoch = asked.epoch)
                and (asked.holder is null or taken.epoch is not null)
            returning asked.place, s.session_id, s.last_seq - asked.events as base, s.lease_epoch, asked.events, asked.checkpoint,
                asked.holder
        ), logged as (
            insert into events (tenant_id, session_id, seq, kind, turn_id, create_time, payload)
            select $1, numbered.session_id, numbered.base + new.within, new.kind, new.turn_id, new.create_time, new.payload
            from unnest($17, $18, $19, $20, $21, $22)
                as new (place, within, kind, turn_id, create_time, payload)
            join numbered on numbered.place = new.place
        ), kept as (
            insert into checkpoints (tenant_id, session_id, seq, checkpoint)
            select $1, session_id, base + events, checkpoint from numbered where checkpoint is not null
            on conflict (tenant_id, session_id) do update
                set seq = excluded.seq, checkpoint = excluded.checkpoint, update_time = now()
        )
        select n.place, n.session_id, n.base, n.lease_epoch, c.seq, c.checkpoint, s.*
        from numbered n
        left join lateral (
            select s.tenant_id, t.name as tenant_name, s.state, s.agent, s.config_hash, s.labels::text,
                s.create_time, s.update_time, s.last_seq, s.input_seq, s.newest_input_seq, s.turn_id, s.worker,
                s.terminate_reason, s.last_stop_reason, s.attempts, s.unpriced_attempts, s.input_uncached_tokens,
                s.cache_read_tokens, s.cache_write_5m_tokens, s.cache_write_1h_tokens, s.output_tokens, s.reasoning_tokens,
                s.cost_nano_usd, s.idle_timeout_ms, s.expire_time, s.terminate_time, s.parent_id, s.parent_turn,
                s.parent_call, s.lineage::text
            from sessions s
            join tenants t on t.tenant_id = s.tenant_id
            where n.holder is not null and s.tenant_id = $1 and s.session_id = n.session_id
        ) s on true
        left join checkpoints c on n.holder is not null and c.tenant_id = $1 and c.session_id = n.session_id
    loop
        stored_ids := stored_ids || appended.session_id;
        return next appended;
    end loop;
    if true = any($16) then
        -- A message that comes when nobody holds the lease any more is an abandoned turn from the start, or it would wait for ever
        -- if its sender were lost now.
        update leases set epoch = epoch + 1, holder = '', expire_time = clock_timestamp()
        where tenant_id = $1 and holder is null and session_id in (
            select asked.session_id from unnest($2, $16) as asked (session_id, waits)
            where asked.waits and asked.session_id = any(stored_ids)
        );
    end if;
    if cardinality($23) > 0 then
        perform 1 from croft_meter(
            $1, stored_ids, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39
        );
    end if;
end
$$;

-- Opens sessions of one tenant, none of which has a key. A place under the limit goes to whoever came first. The arguments are the
-- tenant; of each session its columns and the limit; of each event its session, number, kind, turn, time and payload; and whether
-- any of them has a limit: then they go one by one, or two could take the last place, else they lock out no more than the
-- beginning of the tenant's removal.
create function croft_open_sessions(
    uuid, uuid[], text[], bytea[], text[], text[], text[], timestamptz[], timestamptz[], bigint[], bigint[], text[], text[], text[],
    text[], bigint[], timestamptz[], bigint[], uuid[], bigint[], text[], uuid[], timestamptz[], bytea[], boolean
) returns table (made uuid[], removing boolean)
    language plpgsql volatile set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
#variable_conflict use_column
begin
    if current_user <> session_user then
        raise exception 'a transaction is open' using errcode = 'active_sql_transaction';
    end if;
    perform set_config('role', 'croft_request', true), set_config('croft.tenant', $1::text, true);
    if $25 then
        perform 1 from tenants where tenant_id = $1 for no key update;
    else
        perform 1 from tenants where tenant_id = $1 for key share;
    end if;
    return query
    with asked as materialized (
        select * from unnest(
            $2, $3, $4, $5, $6, $7, $8,
            $9, $10, $11, $12, $13, $14, $15,
            $16, $17, $18
        ) with ordinality as asked (
            session_id, state, agent, agent_name, config_hash, labels, create_time, update_time, last_seq,
            newest_input_seq, turn_id, worker, terminate_reason, last_stop_reason, idle_timeout_ms, expire_time,
            sessions_max, place
        )
    ), made as (
        insert into sessions (
            tenant_id, session_id, state, agent, agent_name, config_hash, labels, create_time, update_time, last_seq,
            newest_input_seq, turn_id, worker, terminate_reason, last_stop_reason, idle_timeout_ms, expire_time
        )
        select $1, session_id, state, agent, agent_name, config_hash, labels::jsonb, create_time, update_time, last_seq,
            newest_input_seq, turn_id, worker, terminate_reason, last_stop_reason, idle_timeout_ms, expire_time
        from asked
        where exists (select 1 from tenants where tenant_id = $1 and remove_time is null) and (
            sessions_max is null
            or (select coalesce(sum(sessions), 0) from open_sessions where tenant_id = $1) + place <= sessions_max
        )
        returning session_id
    ), logged as (
        insert into events (tenant_id, session_id, seq, kind, turn_id, create_time, payload)
        select $1, new.session_id, new.seq, new.kind, new.turn_id, new.create_time, new.payload
        from unnest($19, $20, $21, $22, $23, $24)
            as new (session_id, seq, kind, turn_id, create_time, payload)
        join made on made.session_id = new.session_id
    )
    select array(select session_id from made) as made,
        (select remove_time is not null from tenants where tenant_id = $1) as removing;
end
$$;
