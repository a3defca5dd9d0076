-- An external registry may give ids to schemas that differ in their documentation
-- alone, so that several ids may have one fingerprint. The table goes on saying what
-- each id stands for, whoever gave it. Dropping the constraint takes an exclusive
-- lock on a table of a few rows.
-- +goose Up
alter table refold.schema drop constraint schema_fingerprint_key;
create index schema_fingerprint on refold.schema (fingerprint);
-- Which id the external registry gave to a schema of a subject.
create table refold.registration (
    subject     text collate "C" not null,
    fingerprint bytea   not null,
    schema      integer not null references refold.schema (id),
    primary key (subject, fingerprint)
);
