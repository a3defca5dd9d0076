-- The log as a planner without good statistics needs it. On a new database, and for a
-- new category, `category =` seems to select next to nothing, so that any index which
-- begins with category looks as good as the right one; and a table of a few pages is
-- best read whole. Sessions keep what was planned then until somebody analyzes the
-- table, which takes a minute: every append, every read of the relay and every look at
-- progress read all events of that minute.
--
-- So each index begins with what its users know exactly, and with nothing else.
-- Everybody is locked out of the log while the indexes are built: nothing on a new
-- database.
-- +goose Up
alter table refold.event drop constraint event_pkey;
drop index refold.event_stream_version;
drop index refold.event_id;
alter table refold.event add constraint event_pkey primary key (slot, category, seq);
create unique index event_stream_version on refold.event (stream, category, version);
create unique index event_id on refold.event (id, category);
