package identity

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Dir keeps an authority in a directory, as files with the names of Istio's
// `cacerts` Secret. A mounted Secret is such a directory too.
type Dir string

const (
	certFile  = "ca-cert.pem"
	keyFile   = "ca-key.pem"
	chainFile = "cert-chain.pem"
)

// Load implements Store.
func (d Dir) Load(context.Context) (Material, error) {
	var m Material
	for _, f := range []struct {
		name string
		into *[]byte
	}{{certFile, &m.Cert}, {keyFile, &m.Key}, {chainFile, &m.Chain}, {RootKey, &m.Roots}} {
		data, err := os.ReadFile(filepath.Join(string(d), f.name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Material{}, err
		}
		*f.into = data
	}
	switch {
	case m.Cert == nil && m.Key == nil:
		return Material{}, ErrNoMaterial
	case m.Key == nil:
		return Material{}, fmt.Errorf("%s has %s but no %s: add the key, or remove the certificate to have a new authority made", d, certFile, keyFile)
	case m.Cert == nil:
		return Material{}, fmt.Errorf("%s has %s but no %s: add the certificate, or remove the key to have a new authority made", d, keyFile, certFile)
	}
	return m, nil
}

// Create implements Store. The directory is made when it is missing; only its
// owner can read the key.
func (d Dir) Create(ctx context.Context, m Material) error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	unlock, err := d.lock()
	if err != nil {
		return err
	}
	defer unlock()
	switch _, err := d.Load(ctx); {
	case err == nil:
		return ErrExists
	case !errors.Is(err, ErrNoMaterial):
		return err
	}
	type file struct {
		name string
		data []byte
		mode fs.FileMode
	}
	files := []file{{RootKey, m.Roots, 0o644}, {certFile, m.Cert, 0o644}, {keyFile, m.Key, 0o600}}
	if len(m.Chain) > 0 {
		files = append([]file{{chainFile, m.Chain, 0o644}}, files...)
	}
	// All content is on disk before the first file gets its name: a crash leaves
	// either nothing or everything, but for the moment between two renames.
	for _, f := range files {
		if err := writeSynced(d.temporary(f.name), f.data, f.mode); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := os.Rename(d.temporary(f.name), filepath.Join(string(d), f.name)); err != nil {
			return err
		}
	}
	return nil
}

// Watch implements Store.
func (d Dir) Watch(ctx context.Context) (<-chan struct{}, error) { return WatchDir(ctx, string(d)) }

func (d Dir) temporary(name string) string { return filepath.Join(string(d), "."+name+".new") }

// lock keeps two processes that start together from making two authorities.
func (d Dir) lock() (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(string(d), ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { f.Close() }, nil
}

func writeSynced(path string, data []byte, mode fs.FileMode) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}
