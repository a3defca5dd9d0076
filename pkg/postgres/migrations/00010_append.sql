-- Appending: locks of a batch in a statement for each kind, and the whole of a
-- batch of one in one call. Functions only, so no lock that anybody could wait for.
-- +goose Up

-- The first trip of a batch: takes all its locks in the one order that every
-- writer keeps (slots, keys, chosen ids, claims; each sorted by the caller, and
-- again here) and then reads, in statements that begin after the locks were had,
-- what the batch is judged by. It is one call, so that no client can stop between
-- two locks. A key that is not in the answer was free and is now ours.
-- +goose StatementBegin
create or replace function refold.append_prepare(
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
    got integer;
begin
    perform from (select u.c, u.s from unnest(slot_categories, slot_numbers) u (c, s) order by u.c, u.s) u
        join refold.slot l on l.category = u.c and l.slot = u.s order by l.category, l.slot for no key update of l;
    get diagnostics got = row_count;
    if got <> cardinality(slot_numbers) then
        raise exception 'of % slots % exist', cardinality(slot_numbers), got;
    end if;
    -- A key that is there may be swept before it is read, so it is locked.
    for i in 1 .. cardinality(new_keys) loop
        loop
            insert into refold.idempotency_key (key, request, events) values (new_keys[i], new_requests[i], new_events[i])
                on conflict do nothing;
            exit when found;
            perform from refold.idempotency_key k where k.key = new_keys[i] for key share;
            if found then
                taken_keys := taken_keys || new_keys[i];
                exit;
            end if;
        end loop;
    end loop;
    if cardinality(chosen_ids) > 0 then
        insert into refold.chosen_id (category, id)
            select u.c, u.i from unnest(chosen_categories, chosen_ids) u (c, i) order by u.i, u.c on conflict do nothing;
    end if;
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

-- A batch of one request on one stream, whole, in one trip: the same locks in the
-- same order, then, in statements of their own, what is read under them. expected
-- is a version, -1 for any and -2 for one that exists. It raises instead of
-- answering where nothing may be written, because that rolls back and costs no
-- flush of the log:
--   RF110  the stream is at another version, which DETAIL says
--   RF111  the key or an id was met before: the request is judged in two trips
-- +goose StatementBegin
create function refold.append_one(
    in_category smallint, in_slot smallint, in_stream text, expected bigint,
    ids uuid[], times timestamptz[], types text[], vals bytea[],
    in_actor text, in_correlation text, in_causation text, in_traceparent text,
    new_key text, key_request bytea, key_events bytea, chosen boolean,
    out recorded timestamptz, out head bigint, out last bigint)
    language plpgsql volatile
    set search_path = ''
as $$
declare
    lowest bigint;
    got integer;
begin
    select l.floor into lowest from refold.slot l where l.category = in_category and l.slot = in_slot for no key update;
    if not found then
        raise exception 'slot % of category % does not exist', in_slot, in_category;
    end if;
    if new_key is not null then
        insert into refold.idempotency_key (key, request, events) values (new_key, key_request, key_events) on conflict do nothing;
        if not found then
            raise exception 'the key was met before' using errcode = 'RF111';
        end if;
    end if;
    if chosen then
        insert into refold.chosen_id (category, id) select in_category, u.i from unnest(ids) u (i) order by u.i on conflict do nothing;
        get diagnostics got = row_count;
        if got <> cardinality(ids) or exists (select from refold.event e where e.category = in_category and e.id = any(ids)) then
            raise exception 'an id was met before' using errcode = 'RF111';
        end if;
    end if;

    recorded := clock_timestamp();
    select e.seq into head from refold.event e where e.category = in_category and e.slot = in_slot order by e.seq desc limit 1;
    if not found then
        head := lowest;
    end if;
    select e.version into last from refold.event e where e.category = in_category and e.stream = in_stream order by e.version desc limit 1;
    if not found then
        last := 0;
    end if;
    if expected >= 0 and last <> expected or expected = -2 and last = 0 then
        raise exception 'the stream is at another version' using errcode = 'RF110', detail = last::text;
    end if;
    if cardinality(ids) = 1 then
        insert into refold.event (category, slot, seq, version, id, time, recorded, stream, type, value, actor, correlation_id, causation_id, traceparent)
            values (in_category, in_slot, head + 1, last + 1, ids[1], coalesce(times[1], recorded), recorded, in_stream, types[1], vals[1],
                    in_actor, in_correlation, in_causation, in_traceparent);
    else
        insert into refold.event (category, slot, seq, version, id, time, recorded, stream, type, value, actor, correlation_id, causation_id, traceparent)
            select in_category, in_slot, head + n, last + n, i, coalesce(t, append_one.recorded), append_one.recorded, in_stream, y, v,
                   in_actor, in_correlation, in_causation, in_traceparent
            from unnest(ids, times, types, vals) with ordinality u (i, t, y, v, n);
    end if;
end
$$;
-- +goose StatementEnd
