-- Rebuilds: what was asked for, how far it is, and what was found. Adds columns
-- to refold.projection_version (ACCESS EXCLUSIVE for a moment, no rewrite).
-- +goose Up
alter table refold.projection_version
    add column keep_until timestamptz,          -- when a version that no longer serves may be retired; null: never by itself
    add column dropped    timestamptz;          -- when its table was dropped

-- One rebuild of one projection, from the wish for it to its end.
create table refold.rebuild (
    id          bigint generated always as identity primary key,
    projection  text collate "C" not null,
    version     integer,                        -- what is built; null until it was begun
    state       text collate "C" not null default 'requested' check (state in ('requested', 'running', 'paused', 'waiting', 'failed', 'done', 'cancelled')),
    step        text collate "C" not null default 'preflight' check (step in ('preflight', 'load', 'index', 'check', 'catch up', 'verify', 'promote', 'done')),
    wish        text collate "C" check (wish in ('pause', 'cancel')), -- what somebody asks of the job that runs it
    definition  text,                           -- null until begun: the one that is deployed then
    plan        text collate "C",               -- hash; a job goes on with its own plan only
    options     jsonb not null default '{}',
    progress    jsonb not null default '{}',    -- for people, see rebuilder.Progress; never runs backwards
    report      jsonb,                          -- of the last verification
    error       text,                           -- why it failed
    owner       text,                           -- who runs it, and the session that it can be found by
    owner_pid   integer,
    owner_start timestamptz,
    requested   timestamptz not null default clock_timestamp(),
    started     timestamptz,
    updated     timestamptz not null default clock_timestamp(),
    finished    timestamptz
) with (fillfactor = 50);
-- One at a time for each projection.
create unique index rebuild_open on refold.rebuild (projection) where state not in ('done', 'cancelled');

-- What a rebuild loads of one partition, pinned when it begins, and what came of it.
create table refold.rebuild_partition (
    rebuild      bigint   not null references refold.rebuild (id),
    category     text collate "C" not null,
    generation   integer  not null,
    partition    integer  not null,
    source       text collate "C" not null check (source in ('topic', 'eventstore')),
    topic_id     uuid     not null,
    start_offset bigint   not null,
    end_offset   bigint   not null,
    sent         bigint[] not null,             -- the last seq of each slot whose record was acknowledged before end_offset was read
    heads        bigint[] not null,             -- the last seq of each slot in the event table after end_offset was read
    loaded       timestamptz,
    events       bigint,
    rows         bigint,
    digest       bigint,                        -- of the rows as they were written, the sum of refold.row_hash
    merged       timestamptz,                   -- shared rows: when the parts of this partition went into the rows
    primary key (rebuild, category, generation, partition)
);

-- Notes that a partition is loaded, once: RF050 when it was already, so that the
-- COPY of the same transaction is not committed a second time.
-- +goose StatementBegin
create function refold.rebuild_loaded(p_rebuild bigint, p_category text, p_generation integer, p_partition integer, p_events bigint, p_rows bigint, p_digest bigint) returns void
    language plpgsql volatile
    set search_path = ''
as $$
begin
    update refold.rebuild_partition set loaded = clock_timestamp(), events = p_events, rows = p_rows, digest = p_digest
        where rebuild = p_rebuild and category = p_category and generation = p_generation and partition = p_partition and loaded is null;
    if not found then
        raise exception 'partition % of % is loaded already', p_partition, p_category using errcode = 'RF050';
    end if;
end
$$;
-- +goose StatementEnd

-- Sets the progress of a loaded partition; engines cannot claim it before it is live.
-- +goose StatementBegin
create function refold.progress_load(p_projection text, p_version integer, p_category text, p_generation integer, p_partition integer,
    p_topic uuid, p_next bigint, p_seqs bigint[], p_ids uuid[], p_applied bigint, p_duplicates bigint, p_filtered bigint, p_parked bigint, p_skipped bigint,
    p_foreign bigint, p_last timestamptz) returns void
    language plpgsql volatile
    set search_path = ''
as $$
begin
    update refold.progress set topic_id = p_topic, next_offset = p_next, seqs = p_seqs, last_ids = p_ids, applied = p_applied, duplicates = p_duplicates,
        filtered = p_filtered, parked = p_parked, skipped = p_skipped, foreign_records = p_foreign, last_applied = p_last, updated = clock_timestamp()
        where projection = p_projection and version = p_version and category = p_category and generation = p_generation and partition = p_partition and phase = 'loading';
    if not found then
        raise exception 'partition % of % version % is not being loaded', p_partition, p_projection, p_version using errcode = 'RF051';
    end if;
end
$$;
-- +goose StatementEnd

-- The hash of one row as it lies in a table, over every column that a fold makes.
-- \x01 stands in no text of ours unescaped: keys are checked, jsonb escapes it.
create function refold.row_hash(key text, data jsonb, state jsonb) returns bigint
    language sql immutable parallel safe
    return pg_catalog.hashtextextended((key || E'\x01' || data::text || E'\x01' || coalesce(state::text, '')) collate "C", 0);
