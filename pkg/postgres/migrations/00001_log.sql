-- The log: categories, slots, events, and what keeps appends unique.
-- New tables only, so no lock that anybody could wait for.
-- +goose Up
create schema if not exists refold;

-- A category never changes its slots; its topic grows by generations.
create table refold.category (
    id         smallint generated always as identity primary key,
    name       text collate "C" not null unique,
    slots      smallint not null check (slots between 1 and 4096),
    partitions smallint not null check (partitions between 1 and slots),
    topic      text collate "C" not null unique,
    generation integer  not null default 1,
    created    timestamptz not null default clock_timestamp()
);

-- Locked by every append to the slot, never updated by one. The floor stands
-- for archived events: the last seq that is no longer in refold.event.
create table refold.slot (
    category smallint not null,
    slot     smallint not null,
    floor    bigint   not null default 0,
    primary key (category, slot)
);

-- The event table is the outbox too. value is the Kafka value as it is sent.
create table refold.event (
    category       smallint    not null,
    slot           smallint    not null,
    seq            bigint      not null,
    version        bigint      not null,
    id             uuid        not null,
    time           timestamptz not null,
    recorded       timestamptz not null,
    stream         text collate "C" not null,
    type           text collate "C" not null,
    value          bytea       not null,
    actor          text,
    correlation_id text,
    causation_id   text,
    traceparent    text,
    primary key (category, slot, seq)
);
-- The values are small and mostly random: compressing them costs more than it saves.
alter table refold.event alter column value set storage external;
create unique index event_stream_version on refold.event (category, stream, version);
create unique index event_id on refold.event (id, category);

-- The ids that clients chose. Ids made by the writer cannot clash, so only
-- these need a lock of their own, taken before the events are inserted.
create table refold.chosen_id (
    category smallint not null,
    id       uuid     not null,
    primary key (category, id)
);

-- An Idempotency-Key and what its request did: the ids of its events, from
-- which the first answer is read again.
create table refold.idempotency_key (
    key      text collate "C" primary key,
    request  bytea       not null,
    events   uuid[]      not null,
    recorded timestamptz not null default clock_timestamp()
);
create index idempotency_key_recorded on refold.idempotency_key (recorded);

-- A value taken by a stream within a namespace. A row without a holder is the
-- lock of an append that is still under way, and is never committed.
create table refold.claim (
    namespace text collate "C" not null,
    value     text collate "C" not null,
    category  smallint,
    stream    text collate "C",
    primary key (namespace, value)
);
create index claim_stream on refold.claim (category, stream);
