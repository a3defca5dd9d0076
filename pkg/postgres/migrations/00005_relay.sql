-- The relay: who carries which partition, and how far. New tables only.
-- +goose Up
create table refold.relay_member (
    owner   text collate "C" primary key,
    expires timestamptz not null
);

-- One row for each topic partition: its lease and its cursor. slots, seqs and ids
-- run in parallel: the last event of each slot whose record was acknowledged.
create table refold.relay_partition (
    category   smallint not null,
    generation integer  not null,
    partition  integer  not null,
    topic_id   uuid,                                  -- of the topic that the cursor speaks of
    owner      text collate "C",
    fence      bigint   not null default 0,           -- rises with every change of hands
    nonce      uuid,                                  -- tells two owners with one fence apart, after a lost tail
    expires    timestamptz not null default '-infinity',
    slots      smallint[] not null,
    seqs       bigint[]   not null,
    ids        uuid[]     not null,
    compared   bigint   not null default 0,           -- every record below this offset was compared with the table
    foreign_records bigint not null default 0,
    alarm      text,                                  -- why nothing of the partition is relayed; null when it is
    primary key (category, generation, partition)
) with (fillfactor = 50, autovacuum_vacuum_threshold = 200, autovacuum_vacuum_scale_factor = 0);

-- Moves a cursor after acknowledgements. Raises, so that nothing behind it in the
-- pipeline runs: RF001 when the partition is in other hands, RF002 when an event
-- that was sent is not in the table (any more), RF003 when the server is another
-- incarnation than the one that was read from.
-- +goose StatementBegin
create function refold.relay_move(p_timeline bigint, p_started timestamptz, p_category smallint, p_generation integer, p_partition integer,
    p_fence bigint, p_nonce uuid, p_slots smallint[], p_seqs bigint[], p_ids uuid[], p_compared bigint, p_foreign bigint) returns void
    language plpgsql volatile
    set search_path = ''
as $$
declare
    lost text;
begin
    if ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::bigint <> p_timeline or pg_postmaster_start_time() <> p_started then
        raise exception 'the server is another incarnation' using errcode = 'RF003';
    end if;
    update refold.relay_partition set seqs = p_seqs, ids = p_ids, compared = p_compared, foreign_records = foreign_records + p_foreign
        where category = p_category and generation = p_generation and partition = p_partition and fence = p_fence and nonce = p_nonce and slots = p_slots;
    if not found then
        raise exception 'partition % of category % is in other hands', p_partition, p_category using errcode = 'RF001';
    end if;
    select string_agg(format('slot %s seq %s id %s', u.slot, u.seq, u.id), ', ') into lost
        from unnest(p_slots, p_seqs, p_ids) u (slot, seq, id)
        where u.seq > 0 and not exists (select from refold.event e where e.category = p_category and e.slot = u.slot and e.seq = u.seq and e.id = u.id);
    if lost is not null then
        raise exception 'relayed and not in the event table: %', lost using errcode = 'RF002';
    end if;
end
$$;
-- +goose StatementEnd
