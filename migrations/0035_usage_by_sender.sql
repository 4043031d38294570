-- On whose behalf a model was called, so that what was used can be told by user.

-- Empty for attempts from before, and for those of fronts of an earlier release.
alter table llm_usage_events add column sender text collate "C" not null default '';

-- As before, with the sender of each attempt as its last argument.
create function croft_meter(
    uuid, uuid[], uuid[], text[], text[], text[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[],
    text[], text[], boolean[], timestamptz[], text[], text[],
    text[]
) returns table (
    session_id uuid, attempts bigint, unpriced_attempts bigint, input_uncached_tokens bigint, cache_read_tokens bigint,
    cache_write_5m_tokens bigint, cache_write_1h_tokens bigint, output_tokens bigint, reasoning_tokens bigint,
    cost_nano_usd bigint
)
    language plpgsql volatile set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
#variable_conflict use_column
declare
    agents text[] := '{}';
    -- Each session that has sessions above it, beside each of those.
    below uuid[] := '{}';
    above text[] := '{}';
    last_id uuid;
    agent_name text;
    lineage jsonb;
    used record;
begin
    for place in 1 .. cardinality($3) loop
        if $3[place] is distinct from last_id then
            last_id := $3[place];
            agent_name := null;
            lineage := '[]';
            if last_id = any($2) then
                select s.agent_name, s.lineage into agent_name, lineage
                from sessions s where s.tenant_id = $1 and s.session_id = last_id;
            end if;
            if lineage <> '[]' and not last_id = any(below) then
                above := above || array(select element ->> 'session' from jsonb_array_elements(lineage) as element);
                below := below || array_fill(last_id, array[jsonb_array_length(lineage)]);
            end if;
        end if;
        agents := agents || agent_name;
    end loop;
    for used in
        with metered as (
            insert into llm_usage_events (
                tenant_id, session_id, agent, attempt_id, provider, model, input_uncached_tokens, cache_read_tokens,
                cache_write_5m_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens, cost_nano_usd, latency_ms,
                finish_reason, error_class, usage_estimated, create_time, mode,
                service_tier, sender
            )
            select $1, new.session_id, new.agent, new.attempt_id, new.provider, new.model, new.input_uncached_tokens,
                new.cache_read_tokens, new.cache_write_5m_tokens, new.cache_write_1h_tokens, new.output_tokens,
                new.reasoning_tokens, new.cost_nano_usd, new.latency_ms, new.finish_reason, new.error_class,
                new.usage_estimated, new.create_time, new.mode, new.service_tier, new.sender
            from unnest($3, agents, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
                $21) as new (
                session_id, agent, attempt_id, provider, model, input_uncached_tokens, cache_read_tokens,
                cache_write_5m_tokens, cache_write_1h_tokens, output_tokens, reasoning_tokens, cost_nano_usd, latency_ms,
                finish_reason, error_class, usage_estimated, create_time, mode, service_tier, sender
            )
            where new.agent is not null
            on conflict (tenant_id, attempt_id) do nothing
            returning *
        ), subjects as (
            select 'tenant' as scope, '' as subject, m.* from metered m
            union all
            select 'agent', m.agent, m.* from metered m
            union all
            select 'session', family.above, m.* from metered m
            join unnest(below, above) as family (below, above) on family.below = m.session_id
        ), counted as (
            insert into usage_counters as c (tenant_id, scope, subject, period, slot, changes, nano_usd, tokens)
            select $1, s.scope, s.subject, p.period, pg_backend_pid() % 16, count(*),
                coalesce(sum(s.cost_nano_usd), 0)::bigint,
                sum(s.input_uncached_tokens + s.cache_read_tokens + s.cache_write_5m_tokens + s.cache_write_1h_tokens
                    + s.output_tokens)::bigint
            from subjects s
            cross join lateral unnest(croft_periods(s.create_time)) as p (period)
            group by s.scope, s.subject, p.period
            -- In one order, so that two transactions don't wait for each other.
            order by s.scope, s.subject, p.period
            on conflict (tenant_id, scope, subject, period, slot) do update set changes = c.changes + excluded.changes,
                nano_usd = c.nano_usd + excluded.nano_usd, tokens = c.tokens + excluded.tokens
        )
        select session_id as id, count(*) as attempts, count(*) filter (where cost_nano_usd is null) as unpriced_attempts,
            coalesce(sum(input_uncached_tokens), 0)::bigint as input_uncached_tokens,
            coalesce(sum(cache_read_tokens), 0)::bigint as cache_read_tokens,
            coalesce(sum(cache_write_5m_tokens), 0)::bigint as cache_write_5m_tokens,
            coalesce(sum(cache_write_1h_tokens), 0)::bigint as cache_write_1h_tokens,
            coalesce(sum(output_tokens), 0)::bigint as output_tokens,
            coalesce(sum(reasoning_tokens), 0)::bigint as reasoning_tokens,
            coalesce(sum(cost_nano_usd), 0)::bigint as cost_nano_usd
        from metered group by session_id
    loop
        return query
        update sessions s set
            attempts = s.attempts + used.attempts,
            unpriced_attempts = s.unpriced_attempts + used.unpriced_attempts,
            input_uncached_tokens = s.input_uncached_tokens + used.input_uncached_tokens,
            cache_read_tokens = s.cache_read_tokens + used.cache_read_tokens,
            cache_write_5m_tokens = s.cache_write_5m_tokens + used.cache_write_5m_tokens,
            cache_write_1h_tokens = s.cache_write_1h_tokens + used.cache_write_1h_tokens,
            output_tokens = s.output_tokens + used.output_tokens,
            reasoning_tokens = s.reasoning_tokens + used.reasoning_tokens,
            cost_nano_usd = s.cost_nano_usd + used.cost_nano_usd
        where s.tenant_id = $1 and s.session_id = used.id
        returning s.session_id, s.attempts, s.unpriced_attempts, s.input_uncached_tokens, s.cache_read_tokens,
            s.cache_write_5m_tokens, s.cache_write_1h_tokens, s.output_tokens, s.reasoning_tokens, s.cost_nano_usd;
    end loop;
end
$$;

-- As before, likewise; the text is that of `0034_turns_broken_off.sql`.
create function croft_append(
    uuid, uuid[], bigint[], text[], text[], text[], text[], bigint[], bigint[], timestamptz[], bigint[], bytea[], text[], bigint[],
    boolean[], boolean[], bigint[], bigint[], text[], uuid[], timestamptz[], bytea[], uuid[], text[], text[], text[], bigint[],
    bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], text[], text[], boolean[], timestamptz[], text[],
    text[], text[]
) returns setof croft_appended
    language plpgsql volatile set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
#variable_conflict use_column
declare
    appended croft_appended;
    id uuid;
    place bigint;
    places bigint[] := '{1}';
    now record;
    epoch bigint;
    -- What stands before each append's events; below zero where there are none.
    bases bigint[] := array_fill(-1::bigint, array[cardinality($2)]);
    stored_ids uuid[] := '{}';
begin
    if current_user <> session_user then
        raise exception 'a transaction is open' using errcode = 'active_sql_transaction';
    end if;
    perform set_config('role', 'croft_request', true), set_config('croft.tenant', $1::text, true);
    if cardinality($2) > 1 then
        -- In the order of the ids, so that two who want several don't wait for each other.
        select array_agg(asked.place order by asked.id) into places
        from unnest($2) with ordinality as asked (id, place);
    end if;
    foreach place in array places loop
        id := $2[place];
        -- As it is once the lock is ours.
        select state, lease_epoch, last_seq, input_seq, newest_input_seq into now
        from sessions where tenant_id = $1 and session_id = id for no key update;
        if not found or now.state = 'terminated' or now.lease_epoch is distinct from coalesce($11[place], now.lease_epoch) then
            continue;
        end if;
        appended := null;
        epoch := now.lease_epoch;
        if $13[place] is not null then
            -- A turn's first append takes the lease, and is told of the session as it was before.
            insert into leases as old (tenant_id, session_id, epoch, holder, expire_time)
            values ($1, id, 1, $13[place], clock_timestamp() + $14[place] * interval '1 microsecond')
            on conflict (tenant_id, session_id) do update
                set epoch = old.epoch + 1, holder = excluded.holder, expire_time = excluded.expire_time
                where old.holder is null or old.expire_time <= clock_timestamp()
            returning old.epoch into epoch;
            if not found then
                continue;
            end if;
            select null, null, null, null, c.seq, c.checkpoint,
                s.tenant_id, t.name, s.state, s.agent, s.config_hash, s.labels::text, s.create_time, s.update_time, s.last_seq,
                s.input_seq, s.newest_input_seq, s.turn_id, s.worker, s.terminate_reason, s.last_stop_reason, s.attempts,
                s.unpriced_attempts, s.input_uncached_tokens, s.cache_read_tokens, s.cache_write_5m_tokens,
                s.cache_write_1h_tokens, s.output_tokens, s.reasoning_tokens, s.cost_nano_usd, s.idle_timeout_ms,
                s.expire_time, s.terminate_time, s.parent_id, s.parent_turn, s.parent_call, s.lineage::text
            into appended
            from sessions s
            join tenants t on t.tenant_id = $1
            left join checkpoints c on c.tenant_id = $1 and c.session_id = id
            where s.tenant_id = $1 and s.session_id = id;
        end if;
        if $15[place] and coalesce(now.last_seq + $8[place], now.newest_input_seq) <= greatest(now.input_seq, $9[place]) then
            -- Its last gives it up, unless a message waits.
            update leases set holder = null, expire_time = null
            where tenant_id = $1 and session_id = id and epoch = $11[place];
            if found then
                epoch := null;
            end if;
        end if;
        if $4[place] is null then
            -- What hangs on a new state is not even looked at.
            update sessions set
                last_seq = last_seq + $3[place],
                worker = coalesce($5[place], worker),
                turn_id = coalesce($6[place], turn_id),
                last_stop_reason = coalesce($7[place], last_stop_reason),
                newest_input_seq = coalesce(last_seq + $8[place], newest_input_seq),
                input_seq = greatest(input_seq, $9[place]),
                update_time = $10[place],
                lease_epoch = epoch
            where tenant_id = $1 and session_id = id;
        else
            update sessions set
                last_seq = last_seq + $3[place],
                state = $4[place],
                worker = coalesce($5[place], worker),
                turn_id = case
                    -- The turn that was broken off comes first.
                    when $13[place] is not null and now.state = 'running' then turn_id
                    else coalesce($6[place], turn_id)
                end,
                last_stop_reason = coalesce($7[place], last_stop_reason),
                newest_input_seq = coalesce(last_seq + $8[place], newest_input_seq),
                input_seq = greatest(input_seq, $9[place]),
                update_time = $10[place],
                lease_epoch = epoch
            where tenant_id = $1 and session_id = id;
        end if;
        if $12[place] is not null then
            insert into checkpoints (tenant_id, session_id, seq, checkpoint)
            values ($1, id, now.last_seq + $3[place], $12[place])
            on conflict (tenant_id, session_id) do update
                set seq = excluded.seq, checkpoint = excluded.checkpoint, update_time = now();
        end if;
        if $16[place] then
            -- A message that comes when nobody holds the lease any more is an abandoned turn from the start, or it would wait for
            -- ever if its sender were lost now.
            update leases set epoch = leases.epoch + 1, holder = '', expire_time = clock_timestamp()
            where tenant_id = $1 and session_id = id and holder is null;
        end if;
        bases[place] := now.last_seq;
        stored_ids := stored_ids || id;
        appended.place := place;
        appended.session_id := id;
        appended.base := now.last_seq;
        appended.lease_epoch := epoch;
        return next appended;
    end loop;
    insert into events (tenant_id, session_id, seq, kind, turn_id, create_time, payload)
    select $1, $2[new.place], bases[new.place] + new.within, new.kind, new.turn_id, new.create_time, new.payload
    from unnest($17, $18, $19, $20, $21, $22) as new (place, within, kind, turn_id, create_time, payload)
    where bases[new.place] >= 0;
    if cardinality($23) > 0 then
        perform 1 from croft_meter(
            $1, stored_ids, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39, $40, $41
        );
    end if;
end
$$;

-- What fronts of earlier releases call, who know of no senders.
create or replace function croft_meter(
    uuid, uuid[], uuid[], text[], text[], text[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[],
    text[], text[], boolean[], timestamptz[], text[],
    text[]
) returns table (
    session_id uuid, attempts bigint, unpriced_attempts bigint, input_uncached_tokens bigint, cache_read_tokens bigint,
    cache_write_5m_tokens bigint, cache_write_1h_tokens bigint, output_tokens bigint, reasoning_tokens bigint,
    cost_nano_usd bigint
)
    language plpgsql volatile as $$
begin
    return query
    select * from croft_meter(
        $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
        array_fill(''::text, array[cardinality($4)])
    );
end
$$;

create or replace function croft_append(
    uuid, uuid[], bigint[], text[], text[], text[], text[], bigint[], bigint[], timestamptz[], bigint[], bytea[], text[], bigint[],
    boolean[], boolean[], bigint[], bigint[], text[], uuid[], timestamptz[], bytea[], uuid[], text[], text[], text[], bigint[],
    bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], bigint[], text[], text[], boolean[], timestamptz[], text[],
    text[]
) returns setof croft_appended
    language plpgsql volatile as $$
begin
    return query
    select * from croft_append(
        $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23,
        $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39, $40,
        array_fill(''::text, array[cardinality($24)])
    );
end
$$;
