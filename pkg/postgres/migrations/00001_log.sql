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
    request  bytea       not null,  -- digest of what was asked
    events   bytea       not null,  -- the ids, sixteen bytes each, in order
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

-- The first trip of a batch: takes all its locks in the one order that every
-- writer keeps (slots, keys, chosen ids, claims; each sorted by the caller), and
-- then reads, in statements that begin after the locks were had, what the batch
-- is judged by. It is one call, so that no client can stop between two locks.
-- A key or id that is not in the answer was free and is now ours.
-- +goose StatementBegin
create function refold.append_prepare(
    slot_categories smallint[], slot_numbers smallint[],
    stream_categories smallint[], stream_ids text[],
    new_keys text[], new_requests bytea[], new_events bytea[],
    chosen_categories smallint[], chosen_ids uuid[],
    claim_namespaces text[], claim_values text[],
    out recorded timestamptz, out heads bigint[], out versions bigint[],
    out taken_keys text[], out taken_requests bytea[], out taken_events bytea[],
    out holder_categories smallint[], out holder_streams text[])
    language plpgsql volatile
    set search_path = ''
as $$
declare
    i integer;
    took integer;
begin
    for i in 1 .. cardinality(slot_categories) loop
        perform from refold.slot where category = slot_categories[i] and slot = slot_numbers[i] for no key update;
        if not found then
            raise exception 'slot % of category % does not exist', slot_numbers[i], slot_categories[i];
        end if;
    end loop;
    for i in 1 .. cardinality(new_keys) loop
        insert into refold.idempotency_key (key, request, events) values (new_keys[i], new_requests[i], new_events[i])
            on conflict do nothing;
        get diagnostics took = row_count;
        if took = 0 then
            taken_keys := taken_keys || new_keys[i];
        end if;
    end loop;
    for i in 1 .. cardinality(chosen_ids) loop
        insert into refold.chosen_id (category, id) values (chosen_categories[i], chosen_ids[i]) on conflict do nothing;
    end loop;
    for i in 1 .. cardinality(claim_namespaces) loop
        loop
            insert into refold.claim (namespace, value) values (claim_namespaces[i], claim_values[i]) on conflict do nothing;
            perform from refold.claim c where c.namespace = claim_namespaces[i] and c.value = claim_values[i] for update;
            exit when found;
        end loop;
    end loop;

    recorded := clock_timestamp();
    select array_agg(coalesce(
               (select e.seq from refold.event e where e.category = u.c and e.slot = u.s order by e.seq desc limit 1),
               (select l.floor from refold.slot l where l.category = u.c and l.slot = u.s)) order by u.n)
        into heads from unnest(slot_categories, slot_numbers) with ordinality u (c, s, n);
    select array_agg(coalesce((select e.version from refold.event e where e.category = u.c and e.stream = u.s order by e.version desc limit 1), 0) order by u.n)
        into versions from unnest(stream_categories, stream_ids) with ordinality u (c, s, n);
    if taken_keys is not null then
        select array_agg(k.request order by u.n), array_agg(k.events order by u.n)
            into taken_requests, taken_events
            from unnest(taken_keys) with ordinality u (key, n) join refold.idempotency_key k on k.key = u.key;
    end if;
    if cardinality(claim_namespaces) > 0 then
        select array_agg(k.category order by u.n), array_agg(k.stream order by u.n)
            into holder_categories, holder_streams
            from unnest(claim_namespaces, claim_values) with ordinality u (namespace, value, n)
            join refold.claim k on k.namespace = u.namespace and k.value = u.value;
    end if;
end
$$;
-- +goose StatementEnd
