package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/term"

	"github.com/refoldhq/refold/pkg/avro"
	"github.com/refoldhq/refold/pkg/kafka"
	"github.com/refoldhq/refold/pkg/projection"
	"github.com/refoldhq/refold/pkg/registry"
)

// Settings are what every program takes, under the same names on the command
// line, in the environment and in the config file. Programs embed them in the
// struct of their command line.
type Settings struct {
	Config    string           `help:"YAML file of settings. The environment wins over it, flags win over both." placeholder:"FILE" env:"REFOLD_CONFIG" group:"Settings"`
	LogLevel  slog.Level       `help:"Least level that is logged: debug, info, warn or error." default:"info" env:"REFOLD_LOG_LEVEL" group:"Settings"`
	LogFormat string           `help:"Form of the log: text or json; auto is text on a terminal." enum:"auto,text,json" default:"auto" env:"REFOLD_LOG_FORMAT" group:"Settings"`
	Prefix    string           `help:"First part of the names of topics, groups and clients." default:"refold" env:"REFOLD_PREFIX" group:"Settings"`
	Schemas   string           `help:"Folder of contracts (events/, projections/); those compiled in where it is empty." placeholder:"DIR" env:"REFOLD_SCHEMAS" type:"existingdir" group:"Settings"`
	Version   kong.VersionFlag `help:"Print the version and exit." env:"-" group:"Settings"`

	DatabaseURL     string         `help:"Postgres to work on: a URL or keyword/value pairs. Where it is empty, the PG* variables are taken." placeholder:"URL" env:"DATABASE_URL" group:"Connections"`
	DatabaseURLFile string         `help:"File that holds the database URL." placeholder:"FILE" env:"DATABASE_URL_FILE" group:"Connections"`
	Kafka           Kafka          `embed:"" prefix:"kafka-" group:"Connections"`
	SchemaRegistry  SchemaRegistry `embed:"" prefix:"schema-registry-" group:"Connections"`

	contracts   fs.FS // those compiled in
	upcasters   []avro.Upcaster
	projections []*projection.Definition // in Go
	program     string
	registry    *registry.Client // of the external one; nil: the built-in one
}

// Kafka says how to reach the brokers.
type Kafka struct {
	BootstrapServers []string `help:"Brokers to begin with, host:port, separated by commas." placeholder:"HOST:PORT" env:"KAFKA_BOOTSTRAP_SERVERS"`
	SecurityProtocol string   `help:"PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL." env:"KAFKA_SECURITY_PROTOCOL" placeholder:"NAME"`
	SASLMechanism    string   `name:"sasl-mechanism" help:"PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512." env:"KAFKA_SASL_MECHANISM" placeholder:"NAME"`
	SASLUsername     string   `name:"sasl-username" help:"User at the brokers." env:"KAFKA_SASL_USERNAME" placeholder:"NAME"`
	SASLPassword     string   `name:"sasl-password" help:"Password at the brokers; better in a file, which process lists do not show." env:"KAFKA_SASL_PASSWORD" placeholder:"TEXT"`
	SASLPasswordFile string   `name:"sasl-password-file" help:"File that holds the password." env:"KAFKA_SASL_PASSWORD_FILE" placeholder:"FILE"`
	SSLCAFile        string   `name:"ssl-ca-file" help:"Certificates (PEM) by which brokers are trusted; those of the system where it is empty." env:"KAFKA_SSL_CA_FILE" placeholder:"FILE"`
	SSLCertFile      string   `name:"ssl-cert-file" help:"Our own certificate (PEM)." env:"KAFKA_SSL_CERT_FILE" placeholder:"FILE"`
	SSLKeyFile       string   `name:"ssl-key-file" help:"Key of our own certificate (PEM)." env:"KAFKA_SSL_KEY_FILE" placeholder:"FILE"`
}

// SchemaRegistry says how to reach an external schema registry.
type SchemaRegistry struct {
	URL                   []string `help:"Servers of an external schema registry (Confluent's API) that takes the place of the built-in one, separated by commas." env:"SCHEMA_REGISTRY_URL" placeholder:"URL"`
	BasicAuthUserInfo     string   `help:"User at the registry and password, user:password; better in a file." env:"SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO" placeholder:"TEXT"`
	BasicAuthUserInfoFile string   `help:"File that holds user:password." env:"SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO_FILE" placeholder:"FILE"`
	BearerAuthToken       string   `help:"Token at the registry, in the place of a user; better in a file." env:"SCHEMA_REGISTRY_BEARER_AUTH_TOKEN" placeholder:"TEXT"`
	BearerAuthTokenFile   string   `help:"File that holds the token." env:"SCHEMA_REGISTRY_BEARER_AUTH_TOKEN_FILE" placeholder:"FILE"`
	SSLCAFile             string   `name:"ssl-ca-file" help:"Certificates (PEM) by which the registry is trusted; those of the system where it is empty." env:"SCHEMA_REGISTRY_SSL_CA_FILE" placeholder:"FILE"`
	SSLCertFile           string   `name:"ssl-cert-file" help:"Our own certificate (PEM)." env:"SCHEMA_REGISTRY_SSL_CERT_FILE" placeholder:"FILE"`
	SSLKeyFile            string   `name:"ssl-key-file" help:"Key of our own certificate (PEM)." env:"SCHEMA_REGISTRY_SSL_KEY_FILE" placeholder:"FILE"`
}

// Admin is embedded by commands that run until they are stopped, with the tag
// `embed:"" set:"admin_port=9080"`.
type Admin struct {
	AdminAddr  string        `help:"Where health, metrics and profiles are served." default:"127.0.0.1:${admin_port}" env:"REFOLD_ADMIN_ADDR"`
	DrainDelay time.Duration `help:"How long work goes on after SIGTERM made /readyz fail, so that load balancers notice." default:"${drain_delay}" env:"REFOLD_DRAIN_DELAY"`
}

func (s *Settings) settings() *Settings { return s }

// load reads bindings and the secrets that are given by file, and checks what belongs together.
func (s *Settings) load() error {
	if err := s.bind(os.Getenv("SERVICE_BINDING_ROOT")); err != nil {
		return err
	}
	if err := fromFile(&s.DatabaseURL, s.DatabaseURLFile, "DATABASE_URL"); err != nil {
		return err
	}
	if err := fromFile(&s.Kafka.SASLPassword, s.Kafka.SASLPasswordFile, "KAFKA_SASL_PASSWORD"); err != nil {
		return err
	}
	if (s.Kafka.SSLCertFile == "") != (s.Kafka.SSLKeyFile == "") {
		return errors.New("KAFKA_SSL_CERT_FILE and KAFKA_SSL_KEY_FILE belong together: one of them is missing")
	}
	if err := s.loadRegistry(); err != nil {
		return err
	}
	if len(s.Kafka.BootstrapServers) > 0 {
		if _, err := s.Brokers("check").Options(); err != nil {
			return err
		}
	}
	return nil
}

// loadRegistry makes the client of an external schema registry, if there is one.
func (s *Settings) loadRegistry() error {
	r := &s.SchemaRegistry
	if len(r.URL) == 0 {
		return nil
	}
	if err := fromFile(&r.BasicAuthUserInfo, r.BasicAuthUserInfoFile, "SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO"); err != nil {
		return err
	}
	if err := fromFile(&r.BearerAuthToken, r.BearerAuthTokenFile, "SCHEMA_REGISTRY_BEARER_AUTH_TOKEN"); err != nil {
		return err
	}
	tls, err := kafka.TLS("SCHEMA_REGISTRY_SSL", r.SSLCAFile, r.SSLCertFile, r.SSLKeyFile)
	if err != nil {
		return err
	}
	s.registry, err = registry.NewClient(registry.ClientConfig{URLs: r.URL, BasicAuthUserInfo: r.BasicAuthUserInfo, BearerAuthToken: r.BearerAuthToken, TLS: tls})
	return err
}

func fromFile(value *string, file, name string) error {
	if file == "" {
		return nil
	}
	if *value != "" {
		return fmt.Errorf("%s and %s_FILE are both set: set one of them", name, name)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("reading %s_FILE: %w", name, err)
	}
	if *value = strings.TrimRight(string(raw), "\r\n"); *value == "" {
		return fmt.Errorf("%s_FILE: %s is empty", name, file)
	}
	return nil
}

// Brokers returns how a component reaches the brokers; its clients are named
// <prefix>-<component>-<host>.
func (s *Settings) Brokers(component string) kafka.Config {
	return kafka.Config{Brokers: s.Kafka.BootstrapServers, SecurityProtocol: s.Kafka.SecurityProtocol, SASLMechanism: s.Kafka.SASLMechanism,
		SASLUsername: s.Kafka.SASLUsername, SASLPassword: s.Kafka.SASLPassword, TLSCAFile: s.Kafka.SSLCAFile, TLSCertFile: s.Kafka.SSLCertFile,
		TLSKeyFile: s.Kafka.SSLKeyFile, ClientID: s.Prefix + "-" + component + "-" + hostname()}
}

// Owner names this process in leases and progress rows.
func (s *Settings) Owner() string { return hostname() }

// Logger returns the program's logger on standard error.
func (s *Settings) Logger() *slog.Logger {
	return NewLogger(s.LogLevel, s.LogFormat == "json" || s.LogFormat == "auto" && !term.IsTerminal(int(os.Stderr.Fd())))
}

// ContractsFS returns the folder of contracts, or what is compiled in.
func (s *Settings) ContractsFS() fs.FS {
	if s.Schemas != "" {
		return os.DirFS(s.Schemas)
	}
	return s.contracts
}

// Contracts reads and checks the event schemas, with the upcasters of the program.
func (s *Settings) Contracts() (*avro.Contracts, error) {
	return avro.LoadContracts(s.ContractsFS(), s.Upcasters()...)
}

// Upcasters returns those that are compiled in; with other contracts, of these the
// ones for categories that the contracts have.
func (s *Settings) Upcasters() (list []avro.Upcaster) {
	for _, u := range s.upcasters {
		if _, err := fs.Stat(s.ContractsFS(), "events/"+u.Category); s.Schemas == "" || err == nil {
			list = append(list, u)
		}
	}
	return list
}

// Registry finds schemas by id, and gives ids to those of contracts.
type Registry interface {
	registry.Schemas
	RegisterContracts(ctx context.Context, contracts *avro.Contracts, topicOf func(category string) string) (registry.IDs, error)
	// Handler serves Confluent's API.
	Handler() http.Handler
}

// Registry returns the schema registry for the log in a database: the external one
// that is set, or the built-in one.
func (s *Settings) Registry(pool *pgxpool.Pool) Registry {
	if s.registry != nil {
		return registry.NewRemote(pool, s.registry, s.Logger())
	}
	return registry.New(pool)
}

// Definitions reads the projections' definitions, and adds those in Go. A name
// belongs to one of them, or to several revisions of a fold in Go.
func (s *Settings) Definitions() ([]*projection.Definition, error) {
	list, err := projection.LoadDefinitions(s.ContractsFS())
	if err != nil {
		return nil, err
	}
	for _, d := range s.projections {
		for _, other := range list {
			if d.Name == other.Name && (d.Revision() == 0 || other.Revision() == 0 || d.Revision() == other.Revision()) {
				return nil, fmt.Errorf("the projection %s is defined in %s and in %s", d.Name, other.File, d.File)
			}
		}
		list = append(list, d)
	}
	return list, nil
}
