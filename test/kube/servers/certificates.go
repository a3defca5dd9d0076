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
	"time"
)

// pair is a certificate and its key, PEM.
type pair struct{ certificate, key []byte }

// authority signs certificates for as long as the process runs.
type authority struct {
	pair
	parsed *x509.Certificate
	signer *ecdsa.PrivateKey
}

func newAuthority() (*authority, error) {
	a := &authority{}
	var err error
	a.pair, a.parsed, a.signer, err = sign(&x509.Certificate{Subject: pkix.Name{CommonName: "refold on the lab"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign}, nil)
	return a, err
}

// issue makes a certificate for hosts.
func (a *authority) issue(hosts ...string) (pair, error) {
	issued, _, _, err := sign(&x509.Certificate{Subject: pkix.Name{CommonName: hosts[0]}, DNSNames: hosts, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, a)
	return issued, err
}

// sign makes a key and its certificate, which signs itself without a parent.
func sign(template *x509.Certificate, parent *authority) (p pair, parsed *x509.Certificate, key *ecdsa.PrivateKey, err error) {
	failed := func(err error) (pair, *x509.Certificate, *ecdsa.PrivateKey, error) {
		return pair{}, nil, nil, fmt.Errorf("making a certificate for %s: %w", template.Subject.CommonName, err)
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return failed(err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		return failed(err)
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	signer := &authority{parsed: template, signer: key}
	if parent != nil {
		signer = parent
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer.parsed, &key.PublicKey, signer.signer)
	if err != nil {
		return failed(err)
	}
	if parsed, err = x509.ParseCertificate(der); err != nil {
		return failed(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return failed(err)
	}
	p = pair{certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})}
	return p, parsed, key, nil
}
