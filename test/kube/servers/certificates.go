package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// certificates are those of one server, PEM.
type certificates struct {
	certificate, key []byte
	bundle           string // file with key and certificate, as Kafka reads them
}

// issue makes an authority and a certificate for host, and writes ca.crt and
// the bundle into dir. The authority's key is not kept.
func issue(dir, host string) (c certificates, err error) {
	authority, authorityKey, err := sign(&x509.Certificate{Subject: pkix.Name{CommonName: "refold on the lab"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	if err != nil {
		return c, err
	}
	own, ownKey, err := sign(&x509.Certificate{Subject: pkix.Name{CommonName: host}, DNSNames: []string{host}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, authority, authorityKey)
	if err != nil {
		return c, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(ownKey)
	if err != nil {
		return c, fmt.Errorf("encoding the key of %s: %w", host, err)
	}
	c = certificates{
		certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Raw}),
		key:         pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
		bundle:      filepath.Join(dir, "kafka.pem"),
	}
	trusted := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Raw})
	for path, text := range map[string][]byte{filepath.Join(dir, "ca.crt"): trusted, c.bundle: append(c.key[:len(c.key):len(c.key)], c.certificate...)} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			return c, fmt.Errorf("writing certificates: %w", err)
		}
	}
	return c, nil
}

// sign makes a key and its certificate, self-signed without a parent.
func sign(template, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		return nil, nil, fmt.Errorf("making a serial number: %w", err)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		return nil, nil, fmt.Errorf("signing the certificate of %s: %w", template.Subject.CommonName, err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("reading back the certificate of %s: %w", template.Subject.CommonName, err)
	}
	return certificate, key, nil
}
