-- The log as a planner without good statistics needs it. On a new database, and for a
-- new category, `category =` seems to select next to nothing, so that any index which
-- begins with category looks as good as the right one; and a table of a few pages is
-- best read whole. Sessions keep what was planned then until somebody analyzes the
-- table, which takes a minute: every append, every read of the relay and every look at
-- progress read all events of that minute.
--
-- So each index begins with what its users know exactly, and with nothing else, and
-- the table is never so small that reading it whole seems right: it begins with some
-- pages of dead rows, whose room is used again. Everybody is locked out of the log while
-- the indexes are built: nothing on a new database.
-- +goose Up
alter table refold.event drop constraint event_pkey;
drop index refold.event_stream_version;
drop index refold.event_id;
alter table refold.event add constraint event_pkey primary key (slot, category, seq);
create unique index event_stream_version on refold.event (stream, category, version);
create unique index event_id on refold.event (id, category);

alter table refold.event set (vacuum_truncate = off);
insert into refold.event (category, slot, seq, version, id, time, recorded, stream, type, value)
    select -1, -1, n, n, gen_random_uuid(), 'epoch', 'epoch', '', '', decode(repeat('00', 200), 'hex') from generate_series(1, 1000) n;
delete from refold.event where category = -1;
