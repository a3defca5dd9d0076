package postgres

// MigrateFrom applies the migrations of a folder.
var MigrateFrom = migrate
