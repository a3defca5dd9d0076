package kafka

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// Config says how to reach the brokers. The names are those of the KAFKA_*
// environment.
type Config struct {
	Brokers          []string
	SecurityProtocol string // PLAINTEXT (or empty), SSL, SASL_PLAINTEXT, SASL_SSL
	SASLMechanism    string // PLAIN, SCRAM-SHA-256, SCRAM-SHA-512
	SASLUsername     string
	SASLPassword     string
	TLSCAFile        string // PEM; the system's certificates where it is empty
	TLSCertFile      string // our own certificate and its key, PEM; empty for none
	TLSKeyFile       string
	ClientID         string
}

// maxDecompressed bounds what a compressed batch may grow to: a batch of ours
// has at most a megabyte of a topic's limit, most of it compressible.
const maxDecompressed = 64 << 20

// Options returns the options that every client of ours has.
func (c Config) Options() ([]kgo.Opt, error) {
	if len(c.Brokers) == 0 {
		return nil, fmt.Errorf("no Kafka brokers are configured: set KAFKA_BOOTSTRAP_SERVERS")
	}
	options := []kgo.Opt{kgo.SeedBrokers(c.Brokers...), kgo.MaxDecompressBatchBytes(maxDecompressed), kgo.DialTimeout(5 * time.Second),
		kgo.RequestTimeoutOverhead(8 * time.Second), kgo.ConnIdleTimeout(5 * time.Minute),
		// A topic that was just made, or a leader that has moved, is looked up again soon: the default is 5 s.
		kgo.MetadataMinAge(100 * time.Millisecond)}
	if c.ClientID != "" {
		options = append(options, kgo.ClientID(c.ClientID))
	}
	protocol := strings.ToUpper(c.SecurityProtocol)
	switch protocol {
	case "", "PLAINTEXT", "SASL_PLAINTEXT":
	case "SSL", "SASL_SSL":
		config, err := TLS("KAFKA_SSL", c.TLSCAFile, c.TLSCertFile, c.TLSKeyFile)
		if err != nil {
			return nil, err
		}
		options = append(options, kgo.DialTLSConfig(config))
	default:
		return nil, fmt.Errorf("KAFKA_SECURITY_PROTOCOL is %q: want PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL", c.SecurityProtocol)
	}
	if !strings.HasPrefix(protocol, "SASL_") {
		return options, nil
	}
	switch strings.ToUpper(c.SASLMechanism) {
	case "PLAIN":
		options = append(options, kgo.SASL(plain.Auth{User: c.SASLUsername, Pass: c.SASLPassword}.AsMechanism()))
	case "SCRAM-SHA-256":
		options = append(options, kgo.SASL(scram.Auth{User: c.SASLUsername, Pass: c.SASLPassword}.AsSha256Mechanism()))
	case "SCRAM-SHA-512":
		options = append(options, kgo.SASL(scram.Auth{User: c.SASLUsername, Pass: c.SASLPassword}.AsSha512Mechanism()))
	default:
		return nil, fmt.Errorf("KAFKA_SASL_MECHANISM is %q: want PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512", c.SASLMechanism)
	}
	return options, nil
}

// TLS reads certificates (PEM) by which a server is trusted, those of the system
// where caFile is empty, and our own with its key, if any. Errors name the settings
// <name>_CA_FILE, <name>_CERT_FILE and <name>_KEY_FILE.
func TLS(name, caFile, certFile, keyFile string) (*tls.Config, error) {
	if (certFile == "") != (keyFile == "") {
		return nil, fmt.Errorf("%[1]s_CERT_FILE and %[1]s_KEY_FILE belong together: one of them is missing", name)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if certFile != "" {
		own, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("reading %[1]s_CERT_FILE and %[1]s_KEY_FILE: %[2]w", name, err)
		}
		config.Certificates = []tls.Certificate{own}
	}
	if caFile == "" {
		return config, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("reading %s_CA_FILE: %w", name, err)
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s_CA_FILE: %s holds no certificate", name, caFile)
	}
	return config, nil
}
