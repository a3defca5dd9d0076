package service

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// bindings writes folders as Kubernetes mounts them and returns their root.
func bindings(t *testing.T, folders map[string]map[string]string) string {
	root := t.TempDir()
	for folder, entries := range folders {
		require.NoError(t, os.Mkdir(filepath.Join(root, folder), 0o755))
		for name, text := range entries {
			require.NoError(t, os.WriteFile(filepath.Join(root, folder, name), []byte(text), 0o600))
		}
	}
	return root
}

// strimzi are the entries of a secret that Strimzi's access operator makes.
var strimzi = map[string]string{"type": "kafka", "provider": "strimzi", "bootstrapServers": "a:9093,b:9093", "bootstrap.servers": "a:9093,b:9093", "securityProtocol": "SASL_SSL",
	"saslMechanism": "SCRAM-SHA-512", "username": "refold", "password": "secret\n", "ssl.truststore.crt": "PEM"}

func TestBindingFillsWhatIsOpen(t *testing.T) {
	root := bindings(t, map[string]map[string]string{"k": strimzi, "db": {"type": "postgresql", "uri": "postgres://x"}, "mail": {"type": "smtp"}})
	s := Settings{Kafka: Kafka{SASLUsername: "given"}}
	require.NoError(t, s.bind(root))
	require.Equal(t, Kafka{BootstrapServers: []string{"a:9093", "b:9093"}, SecurityProtocol: "SASL_SSL", SASLMechanism: "SCRAM-SHA-512", SASLUsername: "given",
		SASLPassword: "secret", SSLCAFile: filepath.Join(root, "k", "ssl.truststore.crt")}, s.Kafka)
	require.Equal(t, "postgres://x", s.DatabaseURL)
}

func TestBindingsThatCannotBeMeantAreRefused(t *testing.T) {
	var s Settings
	require.NoError(t, s.bind(""), "no bindings at all")
	require.ErrorContains(t, s.bind(filepath.Join(t.TempDir(), "gone")), "SERVICE_BINDING_ROOT")
	require.ErrorContains(t, s.bind(bindings(t, map[string]map[string]string{"a": strimzi, "b": strimzi})), "both of type kafka")
}
