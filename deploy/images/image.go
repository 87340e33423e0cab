package images

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// File is one file of an image. It belongs to root; the directories above it are made.
type File struct {
	Path string      // in the image: "/usr/local/bin/envoy"
	From string      // on this disk; symbolic links are followed
	Text string      // the content, when From is empty
	Mode fs.FileMode // permissions; zero means those of From, or 0644 for Text
}

// Spec is an image of one platform.
type Spec struct {
	Ref        string // "docker.io/weftmesh/weft:1.2.3"
	Platform   v1.Platform
	Files      []File
	Entrypoint []string
	Cmd        []string
	Env        []string // "PATH=/bin"
	User       string   // "65532:65532"; empty means root
	// Labels are the image's, and the manifest's annotations (OCI: org.opencontainers.image.*).
	Labels map[string]string
	// Compress makes layers small and building slow; for what leaves the machine.
	Compress bool
}

// Epoch is the time of everything in an image, and its date of creation: a build that records its time cannot be repeated.
var Epoch = time.Unix(0, 0).UTC()

// Build makes the image, with all files in one layer. Equal files give an equal image, byte for byte. The error names the file. The files are
// read again when the image is written, so they must stay as they are until then.
func Build(s Spec) (v1.Image, error) {
	entries, err := layout(s.Files)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Ref, err)
	}
	layer, err := newLayer(entries, s.Compress)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", s.Ref, err)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.Append(img, mutate.Addendum{Layer: layer, History: v1.History{Created: v1.Time{Time: Epoch}, CreatedBy: "weft images"}}); err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.Created = v1.Time{Time: Epoch}
	config.OS, config.Architecture, config.Variant = s.Platform.OS, s.Platform.Architecture, s.Platform.Variant
	config.Config = v1.Config{Entrypoint: s.Entrypoint, Cmd: s.Cmd, Env: s.Env, User: s.User, Labels: s.Labels, WorkingDir: "/"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return nil, err
	}
	if len(s.Labels) > 0 {
		img = mutate.Annotations(img, s.Labels).(v1.Image)
	}
	return img, nil
}

// entry is a member of the layer's tar file: a directory when from and text are both unset.
type entry struct {
	name string // relative, as in all layers: "usr/local/bin/envoy"
	dir  bool
	File
	size int64
}

// layout is what stands in the layer, in the order of the names: parents before children.
func layout(files []File) ([]entry, error) {
	all := map[string]entry{}
	for _, f := range files {
		name := strings.TrimPrefix(path.Clean("/"+f.Path), "/")
		if name == "" {
			return nil, fmt.Errorf("file from %q: no path in the image", f.From)
		}
		if old, taken := all[name]; taken {
			return nil, fmt.Errorf("/%s stands there twice: from %q and from %q", name, old.From, f.From)
		}
		e := entry{name: name, File: f, size: int64(len(f.Text))}
		if f.From != "" {
			info, err := os.Stat(f.From)
			if err != nil {
				return nil, err
			}
			if !info.Mode().IsRegular() {
				return nil, fmt.Errorf("%s is no regular file", f.From)
			}
			e.size, e.Mode = info.Size(), cmp.Or(f.Mode, info.Mode().Perm())
		}
		e.Mode = cmp.Or(e.Mode, 0o644)
		all[name] = e
		for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
			if above, taken := all[dir]; taken && !above.dir {
				return nil, fmt.Errorf("/%s is a file, and /%s needs it as directory", dir, name)
			}
			all[dir] = entry{name: dir, dir: true}
		}
	}
	if len(all) == 0 {
		return nil, errors.New("no files")
	}
	return slices.SortedFunc(maps.Values(all), func(a, b entry) int { return strings.Compare(a.name, b.name) }), nil
}

// Tree lists the regular files below a directory of this disk, for a Spec: dir/a/b becomes to/a/b.
func Tree(dir, to string) ([]File, error) {
	var files []File
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		files = append(files, File{Path: path.Join(to, filepath.ToSlash(rel)), From: name})
		return err
	})
	return files, err
}
