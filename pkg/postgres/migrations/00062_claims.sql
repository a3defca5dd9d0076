-- Brings the claims of one stream to a rule that has changed. A function only.
-- +goose Up

-- Takes and releases claims for a stream, all or nothing, under the same locks in
-- the same order as an append, if it is at a version still. It raises
--   RF114  the stream has another last event by now
--   RF115  another stream holds a value, which DETAIL names as namespace, category and stream, separated by line feeds
-- +goose StatementBegin
create function refold.reclaim(
    in_category smallint, in_slot smallint, in_stream text, seen bigint, last uuid,
    take_namespaces text[], take_values text[], release_namespaces text[], release_values text[])
    returns void
    language plpgsql volatile
    set search_path = ''
as $$
declare
    c record;
    holder record;
begin
    perform from refold.slot l where l.category = in_category and l.slot = in_slot for no key update;
    perform from refold.event e where e.category = in_category and e.stream = in_stream and e.version >= seen
        having count(*) = 1 and bool_and(e.version = seen and e.id = reclaim.last);
    if not found then
        raise exception 'the stream has changed' using errcode = 'RF114';
    end if;
    for c in
        select namespace, value, bool_or(take) take from (
            select n namespace, v value, true take from unnest(take_namespaces, take_values) u (n, v)
            union all select n, v, false from unnest(release_namespaces, release_values) u (n, v)) u
        group by namespace, value order by namespace collate "C", value collate "C"
    loop
        loop
            insert into refold.claim (namespace, value) values (c.namespace, c.value) on conflict do nothing;
            select k.category, k.stream into holder from refold.claim k where k.namespace = c.namespace and k.value = c.value for update;
            exit when found;
        end loop;
        if c.take and holder.stream is null then
            update refold.claim k set category = in_category, stream = in_stream where k.namespace = c.namespace and k.value = c.value;
        elsif c.take and (holder.category <> in_category or holder.stream <> in_stream) then
            raise exception 'the value is taken' using errcode = 'RF115',
                detail = concat_ws(e'\n', c.namespace, (select g.name from refold.category g where g.id = holder.category), holder.stream);
        elsif not c.take and (holder.stream is null or holder.category = in_category and holder.stream = in_stream) then
            delete from refold.claim k where k.namespace = c.namespace and k.value = c.value;
        end if;
    end loop;
end
$$;
-- +goose StatementEnd
