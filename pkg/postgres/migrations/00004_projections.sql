-- Projections: the catalogue of versions, their progress, their rows, and what
-- waits to be decided about parked streams. New tables only.
-- +goose Up
create table refold.projection (
    name         text collate "C" primary key,
    active       integer,                       -- the version that queries are served from
    last_version integer not null default 0     -- numbers are never used twice
);

create table refold.projection_version (
    projection text collate "C" not null references refold.projection (name),
    version    integer not null,
    state      text collate "C" not null check (state in ('building', 'ready', 'active', 'retired')),
    definition text not null,                   -- as the author wrote it: YAML, or what a Go projection compiles to
    plan       text collate "C" not null,       -- hash of the compiled plan
    leaf       text collate "C" not null unique,-- the table of its rows, in the schema refold; never used twice
    created    timestamptz not null default clock_timestamp(),
    promoted   timestamptz,
    retired    timestamptz,
    primary key (projection, version)
);

-- How far a version has folded one partition. slots, seqs and last_ids run in
-- parallel: the last seq applied of each slot of the partition and its event id
-- (the nil UUID before the first).
create table refold.progress (
    projection  text collate "C" not null,
    version     integer  not null,
    category    text collate "C" not null,
    generation  integer  not null,
    partition   integer  not null,
    phase       text collate "C" not null default 'live' check (phase in ('loading', 'live', 'closed')),
    topic_id    uuid,                           -- null until the first claim has seen the topic
    next_offset bigint   not null default 0,
    slots       smallint[] not null,
    seqs        bigint[]   not null,
    last_ids    uuid[]     not null,
    stopped     jsonb    not null default '[]', -- [{"slot", "firstMissing", "offset", "reason", "since"}]
    alarm       text,                           -- why the whole partition stands, null when it runs
    owner       text,                           -- who claimed it last, for people
    owner_epoch bigint   not null default 0,
    owner_pid   integer,
    owner_start timestamptz,                    -- backend_start of owner_pid: pids are reused
    -- Every record below next_offset is in one of these (invariant 10), or waits in a stopped slot.
    applied     bigint   not null default 0,
    duplicates  bigint   not null default 0,
    filtered    bigint   not null default 0,
    parked      bigint   not null default 0,
    skipped     bigint   not null default 0,
    foreign_records bigint not null default 0,
    last_applied timestamptz,                   -- recorded time of the last event applied
    updated     timestamptz not null default clock_timestamp(),
    primary key (projection, version, category, generation, partition)
) with (fillfactor = 50);

-- The rows of all projections. Partitioned by projection, then by version: the
-- leaves are made, filled and indexed apart, then attached. No default partition.
create table refold.projections (
    projection_name text collate "C" not null,
    version         integer not null,
    key             text collate "C" not null,
    data            jsonb   not null,
    state           jsonb,                      -- what merging needs and clients never see
    updated_at      timestamptz not null default clock_timestamp()
) partition by list (projection_name);

-- A stream whose event could not be applied by a version, and the events that
-- wait behind it, in order. The record is kept whole, so a retry needs no topic.
create table refold.parked_stream (
    projection text collate "C" not null,
    version    integer  not null,
    category   text collate "C" not null,
    stream     text collate "C" not null,
    slot       smallint not null,
    since      timestamptz not null default clock_timestamp(),
    error      text not null,
    primary key (projection, version, category, stream)
);
create table refold.parked_event (
    projection text collate "C" not null,
    version    integer  not null,
    category   text collate "C" not null,
    stream     text collate "C" not null,
    slot       smallint not null,
    seq        bigint   not null,
    stream_version bigint not null,
    id         uuid     not null,
    type       text collate "C" not null,
    time       timestamptz not null,
    recorded   timestamptz not null,
    actor      text,
    correlation_id text,
    causation_id text,
    traceparent text,
    value      bytea    not null,
    error      text,                            -- null for an event that only waits behind another
    primary key (projection, version, category, slot, seq)
);
create index parked_event_stream on refold.parked_event (projection, version, category, stream, seq);

-- What somebody asks of live rows. The owner of the partition carries it out
-- inside its own fenced transaction; nobody else writes rows.
create table refold.row_request (
    id         bigint generated always as identity primary key,
    projection text collate "C" not null,
    category   text collate "C" not null,
    slot       smallint not null,
    stream     text collate "C" not null,
    action     text collate "C" not null check (action in ('retry', 'skip')),
    reason     text not null,
    requested  timestamptz not null default clock_timestamp(),
    -- Versions that have carried it out, with what came of it: {"1": "applied 3 events"}
    outcomes   jsonb not null default '{}',
    done       timestamptz
);
create index row_request_open on refold.row_request (projection, category, slot) where done is null;

-- Events that somebody decided to skip, kept for later versions too.
create table refold.decision (
    projection text collate "C" not null,
    category   text collate "C" not null,
    slot       smallint not null,
    seq        bigint   not null,
    id         uuid     not null,
    reason     text not null,
    decided    timestamptz not null default clock_timestamp(),
    primary key (projection, category, slot, seq)
);

-- Times are stored as RFC 3339 text that ends in Z, whose meaning no setting of
-- a session changes: so it may be called immutable, which a cast may not.
-- +goose StatementBegin
create function refold.time(t text) returns timestamptz
    language sql immutable strict parallel safe
    return t::timestamptz;
-- +goose StatementEnd

-- Takes a partition of a projection version over: waits for the transaction of a
-- former owner, which holds the row, and reads what that one committed.
-- +goose StatementBegin
create function refold.progress_claim(p_projection text, p_version integer, p_category text, p_generation integer, p_partition integer,
    p_owner text, p_topic uuid, out epoch bigint, out next bigint, out slot_list smallint[], out seq_list bigint[], out id_list uuid[], out topic uuid)
    language plpgsql volatile
    set search_path = ''
as $$
begin
    update refold.progress set owner_epoch = owner_epoch + 1, owner = p_owner, owner_pid = pg_backend_pid(), topic_id = coalesce(topic_id, p_topic),
        owner_start = (select a.backend_start from pg_stat_activity a where a.pid = pg_backend_pid())
        where projection = p_projection and version = p_version and category = p_category and generation = p_generation and partition = p_partition and phase = 'live'
        returning owner_epoch, next_offset, slots, seqs, last_ids, topic_id into epoch, next, slot_list, seq_list, id_list, topic;
    if not found then
        raise exception 'no live progress of % version % for partition % of %', p_projection, p_version, p_partition, p_category using errcode = 'RF011';
    end if;
end
$$;
-- +goose StatementEnd

-- The compare-and-set at the head of every batch. It raises, so that nothing
-- behind it in the pipeline runs, when another owner has taken the partition.
-- +goose StatementBegin
create function refold.progress_move(p_projection text, p_version integer, p_category text, p_generation integer, p_partition integer,
    p_epoch bigint, p_from bigint, p_to bigint, p_seqs bigint[], p_ids uuid[], p_applied bigint, p_duplicates bigint, p_filtered bigint, p_parked bigint,
    p_foreign bigint, p_last timestamptz) returns void
    language plpgsql volatile
    set search_path = ''
as $$
begin
    update refold.progress set next_offset = p_to, seqs = p_seqs, last_ids = p_ids, applied = applied + p_applied, duplicates = duplicates + p_duplicates,
        filtered = filtered + p_filtered, parked = parked + p_parked, foreign_records = foreign_records + p_foreign,
        last_applied = coalesce(p_last, last_applied), alarm = null, updated = clock_timestamp()
        where projection = p_projection and version = p_version and category = p_category and generation = p_generation and partition = p_partition
          and phase = 'live' and owner_epoch = p_epoch and next_offset = p_from;
    if not found then
        raise exception 'partition % of % version % has another owner', p_partition, p_projection, p_version using errcode = 'RF010';
    end if;
end
$$;
-- +goose StatementEnd
