-- The built-in schema registry. New tables only.
-- +goose Up
create sequence refold.schema_id as integer;
create table refold.schema (
    id          integer primary key,
    fingerprint bytea   not null unique,   -- of all that matters to readers
    source      text    not null
);
create table refold.subject_version (
    subject text collate "C" not null,
    version integer not null,
    schema  integer not null references refold.schema (id),
    created timestamptz not null default clock_timestamp(),
    primary key (subject, version)
);
create unique index subject_version_schema on refold.subject_version (subject, schema);
create table refold.registry_config (
    subject       text collate "C" primary key,   -- '' for all others
    compatibility text collate "C" not null
);
