package service

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// bind fills what the settings leave open from the bindings below root, folders
// by the specification of servicebinding.io: a file an entry, one of them the
// type. Kafka (the keys of Strimzi's access operator) and postgresql are taken;
// there must be one of a type at most, and other types are not ours.
func (s *Settings) bind(root string) error {
	if root == "" {
		return nil
	}
	folders, err := os.ReadDir(root)
	if err != nil {
		return fmt.Errorf("reading SERVICE_BINDING_ROOT: %w", err)
	}
	bound := make(map[string]string)
	for _, folder := range folders {
		b := binding{dir: filepath.Join(root, folder.Name())}
		if info, err := os.Stat(b.dir); err != nil || !info.IsDir() { // it may be a link
			continue
		}
		kind := b.text("type")
		switch kind {
		case "kafka":
			b.kafka(&s.Kafka)
		case "postgresql":
			if s.DatabaseURLFile == "" {
				b.fill(&s.DatabaseURL, "uri")
			}
		default:
			continue
		}
		if b.err != nil {
			return fmt.Errorf("reading the binding %s: %w", b.dir, b.err)
		}
		if other := bound[kind]; other != "" {
			return fmt.Errorf("SERVICE_BINDING_ROOT: %s and %s are both of type %s: bind one of them", other, b.dir, kind)
		}
		bound[kind] = b.dir
	}
	return nil
}

// binding is one folder. It keeps its first error.
type binding struct {
	dir string
	err error
}

func (b *binding) kafka(k *Kafka) {
	if len(k.BootstrapServers) == 0 {
		if servers := b.text("bootstrapServers", "bootstrap.servers", "bootstrap-servers"); servers != "" {
			k.BootstrapServers = strings.Split(servers, ",")
		}
	}
	b.fill(&k.SecurityProtocol, "securityProtocol", "security.protocol")
	b.fill(&k.SASLMechanism, "saslMechanism", "sasl.mechanism")
	b.fill(&k.SASLUsername, "username", "user")
	if k.SASLPasswordFile == "" {
		b.fill(&k.SASLPassword, "password")
	}
	b.file(&k.SSLCAFile, "ssl.truststore.crt", "ca.crt")
	if k.SSLCertFile == "" && k.SSLKeyFile == "" {
		b.file(&k.SSLCertFile, "ssl.keystore.crt")
		b.file(&k.SSLKeyFile, "ssl.keystore.key")
	}
}

// fill sets a value that is open from the first of the entries that there is.
func (b *binding) fill(value *string, names ...string) {
	if *value == "" {
		*value = b.text(names...)
	}
}

// file sets a path that is open to the first of the entries that there is.
func (b *binding) file(path *string, names ...string) {
	for _, name := range names {
		if *path == "" && b.text(name) != "" {
			*path = filepath.Join(b.dir, name)
		}
	}
}

func (b *binding) text(names ...string) string {
	for _, name := range names {
		raw, err := os.ReadFile(filepath.Join(b.dir, name))
		if err == nil {
			return strings.TrimSpace(string(raw))
		}
		if !errors.Is(err, fs.ErrNotExist) && b.err == nil {
			b.err = err
		}
	}
	return ""
}
