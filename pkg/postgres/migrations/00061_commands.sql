-- Commands that append nothing: that they were carried out is kept with their key,
-- and what they saw is compared with the log. A nullable column, which takes no
-- longer than a look into the catalogue, and functions.
-- +goose Up

-- The version that a command saw that raised nothing; null for what appended.
alter table refold.idempotency_key add column version bigint;

-- Ends a request that appends nothing: keeps its key, if it has one, and compares
-- the streams that it was decided on with the log, in one statement that begins
-- after the key was had. verdict is
--   done     they are as they were seen, and the key is kept
--   known    something was done under the key before
--   changed  stream number place has got to version actual, or has another last event; no key is kept
-- +goose StatementBegin
create function refold.conclude(
    in_key text, in_request bytea, answer bigint,
    categories smallint[], streams text[], seen bigint[], last uuid[],
    out verdict text, out place integer, out actual bigint)
    language plpgsql volatile
    set search_path = ''
as $$
begin
    if in_key is not null then
        insert into refold.idempotency_key (key, request, events, version) values (in_key, in_request, '', answer) on conflict do nothing;
        if not found then
            verdict := 'known';
            return;
        end if;
    end if;
    select u.n, coalesce(e.version, 0) into place, actual
        from unnest(categories, streams, seen, last) with ordinality u (c, s, v, l, n)
        left join lateral (select e.version, e.id from refold.event e where e.category = u.c and e.stream = u.s order by e.version desc limit 1) e on true
        where coalesce(e.version, 0) <> u.v or e.id is distinct from u.l
        order by u.n limit 1;
    if found then
        verdict := 'changed';
        delete from refold.idempotency_key k where k.key = in_key;
    else
        verdict := 'done';
    end if;
end
$$;
-- +goose StatementEnd
