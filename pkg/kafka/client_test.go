package kafka_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/refoldhq/refold/pkg/kafka"
)

// connect returns a client without any security.
func connect(t testing.TB, brokers []string) (*kgo.Client, *kadm.Client) {
	t.Helper()
	return connectWith(t, kafka.Config{Brokers: brokers})
}

func connectWith(t testing.TB, cfg kafka.Config) (*kgo.Client, *kadm.Client) {
	t.Helper()
	options, err := cfg.Options()
	require.NoError(t, err)
	client, err := kgo.NewClient(append(options, kgo.RequestRetries(0), kgo.RetryTimeout(5*time.Second))...)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client, kadm.NewClient(client)
}

func TestMechanisms(t *testing.T) {
	t.Parallel()
	for _, mechanism := range []string{"PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"} {
		t.Run(mechanism, func(t *testing.T) {
			t.Parallel()
			cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser(mechanism, "ann", "secret"))
			require.NoError(t, err)
			t.Cleanup(cluster.Close)
			cfg := kafka.Config{Brokers: cluster.ListenAddrs(), SecurityProtocol: "SASL_PLAINTEXT", SASLMechanism: mechanism, SASLUsername: "ann", SASLPassword: "secret"}
			client, _ := connectWith(t, cfg)
			require.NoError(t, client.Ping(ctx))
			cfg.SASLPassword = "wrong"
			client, _ = connectWith(t, cfg)
			require.Error(t, client.Ping(ctx))
		})
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	ca := newAuthority(t)
	server := ca.issue(t, "broker")
	clients := x509.NewCertPool()
	clients.AddCert(ca.certificate)
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-512", "ann", "secret"),
		kfake.TLS(&tls.Config{Certificates: []tls.Certificate{server.pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}))
	require.NoError(t, err)
	t.Cleanup(cluster.Close)
	own := ca.issue(t, "refold")
	cfg := kafka.Config{Brokers: cluster.ListenAddrs(), SecurityProtocol: "SASL_SSL", SASLMechanism: "SCRAM-SHA-512", SASLUsername: "ann", SASLPassword: "secret",
		TLSCAFile: ca.file, TLSCertFile: own.certificateFile, TLSKeyFile: own.keyFile}
	client, _ := connectWith(t, cfg)
	require.NoError(t, client.Ping(ctx))

	stranger := cfg
	stranger.TLSCAFile = newAuthority(t).file
	client, _ = connectWith(t, stranger)
	require.Error(t, client.Ping(ctx), "a broker whose certificate another authority signed is not trusted")

	anonymous := cfg
	anonymous.TLSCertFile, anonymous.TLSKeyFile = "", ""
	client, _ = connectWith(t, anonymous)
	require.Error(t, client.Ping(ctx), "the broker asks for a certificate")
}

func TestSettingsThatCannotWorkAreNamed(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty.pem")
	require.NoError(t, os.WriteFile(empty, []byte("nothing"), 0o600))
	for name, cfg := range map[string]kafka.Config{
		"KAFKA_BOOTSTRAP_SERVERS":  {},
		"KAFKA_SECURITY_PROTOCOL":  {SecurityProtocol: "TLS"},
		"KAFKA_SASL_MECHANISM":     {SecurityProtocol: "SASL_SSL", SASLMechanism: "OAUTH"},
		"KAFKA_SSL_CA_FILE":        {SecurityProtocol: "SSL", TLSCAFile: empty},
		"reading KAFKA_SSL_CA":     {SecurityProtocol: "SSL", TLSCAFile: empty + ".missing"},
		"reading KAFKA_SSL_CERT":   {SecurityProtocol: "SSL", TLSCertFile: empty, TLSKeyFile: empty},
		"KAFKA_SASL_MECHANISM is ": {SecurityProtocol: "SASL_PLAINTEXT"},
	} {
		if name != "KAFKA_BOOTSTRAP_SERVERS" {
			cfg.Brokers = []string{"localhost:9092"}
		}
		_, err := cfg.Options()
		require.ErrorContains(t, err, name)
	}
}

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	file        string
}

type issued struct {
	pair                     tls.Certificate
	certificateFile, keyFile string
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	certificate, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	a := authority{certificate, key, filepath.Join(t.TempDir(), "ca.pem")}
	writePEM(t, a.file, "CERTIFICATE", der)
	return a
}

func (a authority) issue(t *testing.T, name string) issued {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	folder := t.TempDir()
	i := issued{pair: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, certificateFile: filepath.Join(folder, "cert.pem"), keyFile: filepath.Join(folder, "key.pem")}
	writePEM(t, i.certificateFile, "CERTIFICATE", der)
	writePEM(t, i.keyFile, "PRIVATE KEY", private)
	return i
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}
