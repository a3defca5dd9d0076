-- Divergences that were repaired for the log's side. A new table.
-- +goose Up

-- The topic holds two branches of a slot: from seq on, what lies below the offset
-- was lost by the database, and the log's own events lie behind it.
create table refold.relay_repair (
    category     smallint not null,
    generation   integer  not null,
    slot         smallint not null,
    seq          bigint   not null,
    until_offset bigint   not null,   -- of the slot's partition
    topic_id     uuid     not null,   -- of the topic whose offset that is
    repaired     timestamptz not null default clock_timestamp(),
    primary key (category, generation, slot, until_offset)
);
