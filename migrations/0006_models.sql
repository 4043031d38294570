-- The models that sessions may name, and their prices: the same for all tenants, so without row security. `croft-front
-- migrate` fills them from the front's seed and leaves what is there alone: an admin's own rows stand.
create table models (
    model_id text collate "C" primary key,
    provider text not null,
    aliases text[] not null default '{}',
    tools boolean not null default false,
    images boolean not null default false,
    thinking boolean not null default false,
    -- 0 when not known.
    context_tokens_max bigint not null default 0,
    output_tokens_max bigint not null default 0
);

-- US dollars for a million tokens. A class without a price is null: what it costs is then unknown, not nothing.
create table prices (
    model_id text collate "C" not null references models on delete cascade,
    effective_from timestamptz not null,
    -- The prompt size above which the whole request costs this; 0 is the base tier.
    above_input_tokens bigint not null default 0 check (above_input_tokens >= 0),
    input_usd numeric not null check (input_usd >= 0),
    cache_read_usd numeric check (cache_read_usd >= 0),
    cache_write_5m_usd numeric check (cache_write_5m_usd >= 0),
    cache_write_1h_usd numeric check (cache_write_1h_usd >= 0),
    output_usd numeric not null check (output_usd >= 0),
    -- Where the price was read.
    source text not null,
    primary key (model_id, effective_from, above_input_tokens)
);

grant select on models, prices to croft_request;
