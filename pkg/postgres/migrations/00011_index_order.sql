-- The log's indexes in the order in which a planner without statistics needs them.
-- Of a new category, or of a new database, it takes `category =` alone to select
-- next to nothing; any index that begins with category then seems as good as the
-- right one, and the one that was made first wins. With (category, slot, seq) made
-- first, the version of a stream was looked for by reading the whole category, until
-- somebody analyzed the table: a minute in which every append reads all before it.
-- A primary key that begins with slot serves those who know the slot and nobody
-- else. It must be made before the others. Locks out appends while the indexes are
-- built: nothing on a new database.
-- +goose Up
alter table refold.event drop constraint event_pkey;
drop index refold.event_stream_version;
drop index refold.event_id;
alter table refold.event add constraint event_pkey primary key (slot, category, seq);
create unique index event_stream_version on refold.event (category, stream, version);
create unique index event_id on refold.event (id, category);
