package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// layer is a v1.Layer that is read from the files that it is made of, or, compressed, kept in memory: go-containerregistry's own
// compresses anew each time that it is asked for anything, and cannot leave a layer uncompressed.
type layer struct {
	entries        []entry
	digest, diffID v1.Hash
	size           int64
	compressed     []byte // nil: stays as it is
}

func newLayer(entries []entry, compress bool) (*layer, error) {
	l := &layer{entries: entries}
	plain := sha256.New()
	if !compress {
		n := counter{}
		if err := writeLayer(io.MultiWriter(plain, &n), entries); err != nil {
			return nil, err
		}
		l.diffID, l.size = sum(plain), n.n
		l.digest = l.diffID
		return l, nil
	}
	var b bytes.Buffer
	packed := sha256.New()
	z := gzip.NewWriter(io.MultiWriter(packed, &b))
	if err := writeLayer(io.MultiWriter(plain, z), entries); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	l.diffID, l.digest, l.size, l.compressed = sum(plain), sum(packed), int64(b.Len()), b.Bytes()
	return l, nil
}

func (l *layer) Digest() (v1.Hash, error) { return l.digest, nil }
func (l *layer) DiffID() (v1.Hash, error) { return l.diffID, nil }
func (l *layer) Size() (int64, error)     { return l.size, nil }

func (l *layer) MediaType() (types.MediaType, error) {
	if l.compressed != nil {
		return types.OCILayer, nil
	}
	return types.OCIUncompressedLayer, nil
}

func (l *layer) Compressed() (io.ReadCloser, error) {
	if l.compressed != nil {
		return io.NopCloser(bytes.NewReader(l.compressed)), nil
	}
	return l.Uncompressed()
}

// Uncompressed reads the files again, and fails at the end when they are not those that the digest was made of.
func (l *layer) Uncompressed() (io.ReadCloser, error) {
	r, w := io.Pipe()
	go func() {
		again := sha256.New()
		err := writeLayer(io.MultiWriter(w, again), l.entries)
		if err == nil && sum(again) != l.diffID {
			err = errors.New("a file was changed while its image was written; build it again")
		}
		w.CloseWithError(err)
	}()
	return r, nil
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }

func sum(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

func writeLayer(to io.Writer, entries []entry) error {
	w := tar.NewWriter(to)
	for _, e := range entries {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: e.name, Size: e.size, Mode: int64(e.Mode.Perm()), ModTime: Epoch, Format: tar.FormatPAX}
		if e.dir {
			h.Typeflag, h.Name, h.Mode = tar.TypeDir, e.name+"/", 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			return fmt.Errorf("/%s: %w", e.name, err)
		}
		if e.dir {
			continue
		}
		if err := writeContent(w, e); err != nil {
			return fmt.Errorf("/%s: %w", e.name, err)
		}
	}
	return w.Close()
}

func writeContent(w io.Writer, e entry) error {
	if e.From == "" {
		_, err := io.WriteString(w, e.Text)
		return err
	}
	f, err := os.Open(e.From)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}
