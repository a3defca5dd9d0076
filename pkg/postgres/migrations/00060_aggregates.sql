-- Snapshots of aggregates, and the way from an event to what it has caused. A new
-- table, and an index that locks refold.event against appends while it is built.
-- +goose Up

-- The state of an aggregate after its event number version. It is a cache: the
-- log alone is the truth. A row whose fingerprint nobody has any more is swept.
create table refold.snapshot (
    category    smallint not null,
    stream      text collate "C" not null,
    fingerprint bytea    not null,          -- of the state's type and of what folds events into it
    version     bigint   not null,
    event       uuid     not null,          -- the id of that event: after a lost tail the stream holds another
    recorded    timestamptz not null,       -- of that event
    state       bytea    not null,
    written     timestamptz not null default clock_timestamp(),
    primary key (category, stream, fingerprint)
) with (fillfactor = 70);
create index snapshot_written on refold.snapshot (written);

-- Only events that name their cause pay for it.
create index event_causation on refold.event (causation_id) where causation_id is not null;

-- How far a reaction has come in each slot.
create table refold.reaction_progress (
    reaction text collate "C" not null,
    category text collate "C" not null,
    slot     smallint not null,
    seq      bigint   not null,             -- every event up to it was handled, skipped or is behind a parked one
    event    uuid,                          -- the id of that event; null before the first
    updated  timestamptz not null default clock_timestamp(),
    primary key (reaction, category, slot)
) with (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);

-- Streams whose event a reaction could not handle. Their later events wait in the
-- log: they are read again, by version, once somebody has asked for it.
create table refold.reaction_parked (
    reaction text collate "C" not null,
    category text collate "C" not null,
    stream   text collate "C" not null,
    version  bigint   not null,             -- the first event that was not handled
    event    uuid     not null,
    attempts integer  not null,
    error    text     not null,
    since    timestamptz not null default clock_timestamp(),
    request  text collate "C" check (request in ('retry', 'skip')),
    reason   text,                          -- why it was asked for
    primary key (reaction, category, stream)
);
create index reaction_parked_request on refold.reaction_parked (reaction) where request is not null;
