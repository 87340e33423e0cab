package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// KeyOptions are needed to read keys from an API server, which asks its callers
// for a token (Kubernetes: ClusterRole system:service-account-issuer-discovery).
type KeyOptions struct {
	CAFile    string // PEM; empty means the system's roots
	TokenFile string // sent as bearer token, read anew for each request; empty means none

	Client *http.Client // instead of these, one that knows how to ask; nil for none
}

// OpenKeys reads a JSON Web Key Set from a file, which it follows, or from an
// http or https URL, which it asks again every few minutes and when a token names
// an unknown key. A file must exist; a URL may come to life later.
func OpenKeys(ctx context.Context, location string, o KeyOptions, log *slog.Logger) (Keys, error) {
	if strings.HasPrefix(location, "https://") || strings.HasPrefix(location, "http://") {
		return openURL(location, o)
	}
	return openFile(ctx, location, log)
}

// keySet is a parsed JWKS.
type keySet []jose.JSONWebKey

func parseKeySet(data []byte) (keySet, error) {
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, errors.New("not a JSON Web Key Set")
	}
	var keys keySet
	for _, k := range set.Keys {
		// Keys for encryption and symmetric keys cannot vouch for a token.
		if k.Valid() && k.IsPublic() && k.Use != "enc" {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("no public key for signatures in the JSON Web Key Set")
	}
	return keys, nil
}

func (s keySet) find(id string) []jose.JSONWebKey {
	if id == "" {
		return s
	}
	var found []jose.JSONWebKey
	for _, k := range s {
		if k.KeyID == id {
			found = append(found, k)
		}
	}
	return found
}

type fileKeys struct{ keys atomic.Pointer[keySet] }

func openFile(ctx context.Context, path string, log *slog.Logger) (*fileKeys, error) {
	// The watch begins before the first read, so that no change falls between.
	events, err := WatchDir(ctx, filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	f := new(fileKeys)
	if err := f.read(path); err != nil {
		return nil, err
	}
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-events:
			}
			if err := f.read(path); err != nil {
				log.Warn("the token issuer's keys cannot be read; the former ones stay in use", "error", err)
			}
		}
	}()
	return f, nil
}

func (f *fileKeys) read(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	keys, err := parseKeySet(data)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	f.keys.Store(&keys)
	return nil
}

func (f *fileKeys) Key(_ context.Context, id string) ([]jose.JSONWebKey, error) {
	return f.keys.Load().find(id), nil
}

const (
	// keysFresh is how long keys are used without asking for new ones.
	keysFresh = 5 * time.Minute
	// keysPause is the least time between two requests, so that tokens with
	// made-up key IDs do not become requests to the API server.
	keysPause = 5 * time.Second
	// keysLimit bounds the size of an answer.
	keysLimit = 1 << 20
)

type urlKeys struct {
	url       string
	tokenFile string
	client    *http.Client

	mu    sync.Mutex
	keys  keySet
	tried time.Time
	err   error // of the last try
}

func openURL(location string, o KeyOptions) (*urlKeys, error) {
	if _, err := url.Parse(location); err != nil {
		return nil, err
	}
	if o.Client != nil {
		return &urlKeys{url: location, client: o.Client}, nil
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s: %w", o.CAFile, errNoCertificate)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	return &urlKeys{url: location, tokenFile: o.TokenFile, client: &http.Client{Transport: transport, Timeout: 10 * time.Second}}, nil
}

// Key holds the lock while it asks: everybody who waits wants the same answer.
func (u *urlKeys) Key(ctx context.Context, id string) ([]jose.JSONWebKey, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	found := u.keys.find(id)
	age := time.Since(u.tried)
	if age > keysFresh || (len(found) == 0 && age > keysPause) {
		u.tried = time.Now()
		var keys keySet
		if keys, u.err = u.get(ctx); u.err == nil {
			u.keys = keys
			found = keys.find(id)
		}
	}
	if len(found) == 0 && u.err != nil {
		return nil, u.err
	}
	return found, nil
}

func (u *urlKeys) get(ctx context.Context) (keySet, error) {
	// A caller that hangs up must not spoil the answer for the others.
	ctx = context.WithoutCancel(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.url, nil)
	if err != nil {
		return nil, err
	}
	if u.tokenFile != "" {
		token, err := os.ReadFile(u.tokenFile)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	resp, err := u.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: status %s", u.url, resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, keysLimit))
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", u.url, err)
	}
	keys, err := parseKeySet(data)
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", u.url, err)
	}
	return keys, nil
}
