package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	ociLayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// WriteArchive writes one image as docker-archive, under s.Ref: for "ctr images import", "kind load image-archive" and
// "docker load". The file appears under its name when it is whole.
func WriteArchive(file string, s Spec) error {
	img, err := Build(s)
	if err != nil {
		return err
	}
	// A tag is written as it is, not in the full form that a registry would be asked with: "localhost/pause:1".
	ref, err := name.NewTag(s.Ref)
	if err != nil {
		return fmt.Errorf("image %q: %w", s.Ref, err)
	}
	return whole(file, func(w io.Writer) error { return tarball.Write(ref, img, w) })
}

// Index is one image for several platforms: equal specs but for Platform and Files.
func Index(specs []Spec) (v1.ImageIndex, error) {
	if len(specs) == 0 {
		return nil, errors.New("no image")
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, s := range specs {
		img, err := Build(s)
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: s.Platform.DeepCopy()}})
	}
	if labels := specs[0].Labels; len(labels) > 0 {
		index = mutate.Annotations(index, labels).(v1.ImageIndex)
	}
	return index, nil
}

// WriteLayout writes an index as OCI layout, in one tar file; ref is its name in there (what "ctr images import" and
// "skopeo copy oci-archive:" call it).
func WriteLayout(file, ref string, index v1.ImageIndex) error {
	if _, err := name.NewTag(ref); err != nil {
		return fmt.Errorf("image %q: %w", ref, err)
	}
	dir, err := os.MkdirTemp(filepath.Dir(file), ".layout-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	to, err := ociLayout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	if err := to.AppendIndex(index, ociLayout.WithAnnotations(map[string]string{
		"io.containerd.image.name":          ref, // what containerd goes by
		"org.opencontainers.image.ref.name": ref, // what the OCI says
	})); err != nil {
		return err
	}
	files, err := Tree(dir, "/")
	if err != nil {
		return err
	}
	for i := range files {
		files[i].Mode = 0o644
	}
	entries, err := layout(files)
	if err != nil {
		return err
	}
	return whole(file, func(w io.Writer) error { return writeLayer(w, entries) })
}

// Push sends an index to a registry, by the credentials of the user's Docker configuration unless options say otherwise.
func Push(ctx context.Context, ref string, index v1.ImageIndex, options ...remote.Option) (digest v1.Hash, err error) {
	to, err := name.ParseReference(ref)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("image %q: %w", ref, err)
	}
	if err := remote.WriteIndex(to, index, append([]remote.Option{remote.WithContext(ctx)}, options...)...); err != nil {
		return v1.Hash{}, fmt.Errorf("push %s: %w", ref, err)
	}
	return index.Digest()
}

// whole writes a file beside its place and moves it there.
func whole(file string, write func(io.Writer) error) (err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+"-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}
