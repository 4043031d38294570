-- Alerts are posted to the platform's webhook, if there is one: by whichever front comes to it, again until it is taken, and not
-- for ever.
alter table budget_alerts add column hook_tries int not null default 0;
-- When it is to be tried next; null when it was taken, or is given up.
alter table budget_alerts add column hook_time timestamptz default now();
alter table budget_alerts add column hook_end text check (hook_end in ('taken', 'dead'));

-- What came before the webhook is not posted.
update budget_alerts set hook_time = null, hook_end = 'taken';

create index budget_alerts_hooks on budget_alerts (hook_time) where hook_time is not null;

create policy owner_claims on budget_alerts for update to current_user using (true) with check (true);

-- Takes so many alerts whose time has come, and counts a try of each. Nobody else takes them within the lease.
create function croft_claim_hooks(rows_max bigint, lease interval)
    returns table (
        tenant_id uuid, tenant_name text, scope text, subject text, period text, unit text, limit_amount bigint,
        percent int, spent_amount bigint, session_id uuid, create_time timestamptz, hook_tries int
    )
    language sql volatile security definer set search_path = public, pg_temp
    as $$
        update budget_alerts a set hook_tries = a.hook_tries + 1, hook_time = now() + lease
        from tenants t
        where t.tenant_id = a.tenant_id and a.ctid = any (array(
            select d.ctid from budget_alerts d where d.hook_time <= now() order by d.hook_time limit rows_max
            for update skip locked
        ))
        returning a.tenant_id, t.name, a.scope, a.subject, a.period, a.unit, a.limit_amount, a.percent, a.spent_amount,
            a.session_id, a.create_time, a.hook_tries
    $$;

revoke execute on function croft_claim_hooks(bigint, interval) from public;
grant execute on function croft_claim_hooks(bigint, interval) to croft_request;
