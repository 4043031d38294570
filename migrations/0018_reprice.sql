-- What attempts cost may be reckoned anew, by the owner of the tables, one tenant at a time: `croft-front reprice`. The front's
-- own roles may change no row of usage.
create policy owner_reprices on llm_usage_events to current_user
    using (tenant_id = croft_tenant()) with check (tenant_id = croft_tenant());
create policy owner_reprices on usage_counters to current_user
    using (tenant_id = croft_tenant()) with check (tenant_id = croft_tenant());
