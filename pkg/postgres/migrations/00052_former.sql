-- What a projection has left is not gone back to unless somebody says so. Adds
-- columns with constant defaults (ACCESS EXCLUSIVE for a moment, no rewrite).
-- +goose Up
alter table refold.projection_version
    add column former_plans text[] not null default '{}'; -- plans whose place another one took in the same version, by a change in place
