package images

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	ociLayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

var amd64, arm64 = v1.Platform{OS: "linux", Architecture: "amd64"}, v1.Platform{OS: "linux", Architecture: "arm64"}

func spec(t *testing.T, p v1.Platform) Spec {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, bytes.Repeat([]byte("\x7fELF "+p.Architecture), 1000), 0o700); err != nil {
		t.Fatal(err)
	}
	return Spec{
		Ref:      "docker.io/weftmesh/weft:1.2.3",
		Platform: p,
		Files: []File{
			{Path: "/usr/local/bin/program", From: program, Mode: 0o755},
			{Path: "/etc/hello", Text: "hello\n"},
		},
		Entrypoint: []string{"/usr/local/bin/program"},
		User:       "65532:65532",
		Labels:     map[string]string{"org.opencontainers.image.version": "1.2.3"},
	}
}

func TestTheSameFilesGiveTheSameBytes(t *testing.T) {
	dir := t.TempDir()
	write := func(name string) (archive, layout []byte) {
		a, b := spec(t, amd64), spec(t, arm64) // new files, at another path and of another time
		a.Compress, b.Compress = true, true
		index, err := Index([]Spec{a, b})
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, name)
		if err := WriteLayout(file+"-oci.tar", a.Ref, index); err != nil {
			t.Fatal(err)
		}
		a.Compress = false
		if err := WriteArchive(file+".tar", a); err != nil {
			t.Fatal(err)
		}
		return read(t, file+".tar"), read(t, file+"-oci.tar")
	}
	archive, layout := write("first")
	archive2, layout2 := write("second")
	if !bytes.Equal(archive, archive2) {
		t.Error("two docker-archives of the same files differ")
	}
	if !bytes.Equal(layout, layout2) {
		t.Error("two OCI layouts of the same files differ")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 4 {
		t.Errorf("%d files are left over beside the four: %v", len(left)-4, left)
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The archive is read back by somebody else's code, as a runtime would.
func TestAnArchiveHoldsTheImageUnderItsName(t *testing.T) {
	file := filepath.Join(t.TempDir(), "weft.tar")
	if err := WriteArchive(file, spec(t, amd64)); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("docker.io/weftmesh/weft:1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	img, err := tarball.ImageFromPath(file, &tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	checkImage(t, img, amd64)
	manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(file) })
	if err != nil || len(manifest) != 1 || !slices.Equal(manifest[0].RepoTags, []string{"docker.io/weftmesh/weft:1.2.3"}) {
		t.Errorf("manifest.json: %+v, %v", manifest, err)
	}
}

func checkImage(t *testing.T, img v1.Image, p v1.Platform) {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c.OS != p.OS || c.Architecture != p.Architecture || c.Config.User != "65532:65532" ||
		!slices.Equal(c.Config.Entrypoint, []string{"/usr/local/bin/program"}) || c.Config.Labels["org.opencontainers.image.version"] != "1.2.3" {
		t.Errorf("configuration: %+v", c)
	}
	if !c.Created.Time.Equal(Epoch) {
		t.Errorf("made %v, and a build that records its time cannot be repeated", c.Created)
	}
	layers, err := img.Layers()
	if err != nil || len(layers) != 1 {
		t.Fatalf("%d layers, %v", len(layers), err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var got []string
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || !h.ModTime.Equal(Epoch) {
			t.Errorf("%s: owner %d:%d %q, time %v", h.Name, h.Uid, h.Gid, h.Uname, h.ModTime)
		}
		got = append(got, h.FileInfo().Mode().String()+" "+h.Name)
	}
	want := []string{
		"drwxr-xr-x etc/", "-rw-r--r-- etc/hello", "drwxr-xr-x usr/", "drwxr-xr-x usr/local/", "drwxr-xr-x usr/local/bin/",
		"-rwxr-xr-x usr/local/bin/program",
	}
	if !slices.Equal(got, want) {
		t.Errorf("layer:\n%s", strings.Join(got, "\n"))
	}
}

func TestAFileThatChangesWhileItsImageIsWrittenIsNoticed(t *testing.T) {
	s := spec(t, amd64)
	img, err := Build(s)
	if err != nil {
		t.Fatal(err)
	}
	b := read(t, s.Files[0].From)
	b[0]++
	if err := os.WriteFile(s.Files[0].From, b, 0o700); err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	r, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); err == nil || !strings.Contains(err.Error(), "changed") {
		t.Errorf("got %v: the layer does not have the digest that its manifest says", err)
	}
}

func TestALayoutHasAllPlatforms(t *testing.T) {
	dir := t.TempDir()
	a, b := spec(t, amd64), spec(t, arm64)
	a.Compress, b.Compress = true, true
	index, err := Index([]Spec{a, b})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "weft-oci.tar")
	if err := WriteLayout(file, a.Ref, index); err != nil {
		t.Fatal(err)
	}
	unpacked := t.TempDir()
	if out, err := exec.Command("tar", "-C", unpacked, "-xf", file).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	outer, err := ociLayout.ImageIndexFromPath(unpacked)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(outer); err != nil {
		t.Error(err)
	}
	m, err := outer.IndexManifest()
	if err != nil || len(m.Manifests) != 1 || m.Manifests[0].Annotations["io.containerd.image.name"] != a.Ref {
		t.Fatalf("index.json: %+v, %v", m, err)
	}
	inner, err := outer.ImageIndex(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	checkIndex(t, inner)
}

func checkIndex(t *testing.T, index v1.ImageIndex) {
	t.Helper()
	m, err := index.IndexManifest()
	if err != nil || len(m.Manifests) != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	if m.Annotations["org.opencontainers.image.version"] != "1.2.3" {
		t.Errorf("annotations %v", m.Annotations)
	}
	for i, p := range []v1.Platform{amd64, arm64} {
		if !m.Manifests[i].Platform.Equals(p) {
			t.Errorf("manifest %d is for %v", i, m.Manifests[i].Platform)
		}
		img, err := index.Image(m.Manifests[i].Digest)
		if err != nil {
			t.Fatal(err)
		}
		checkImage(t, img, p)
	}
}

func TestARegistryTakesAllPlatforms(t *testing.T) {
	s := httptest.NewServer(registry.New())
	defer s.Close()
	a, b := spec(t, amd64), spec(t, arm64)
	a.Compress, b.Compress = true, true
	index, err := Index([]Spec{a, b})
	if err != nil {
		t.Fatal(err)
	}
	ref := strings.TrimPrefix(s.URL, "http://") + "/weftmesh/weft:1.2.3"
	digest, err := Push(t.Context(), ref, index)
	if err != nil {
		t.Fatal(err)
	}
	at, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	got, err := remote.Index(at)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := got.Digest(); err != nil || d != digest {
		t.Errorf("digest %v, %v; pushed %v", d, err, digest)
	}
	if err := validate.Index(got); err != nil {
		t.Error(err)
	}
	checkIndex(t, got)
}

func TestWhatIsWrongWithASpecIsNamed(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		name  string
		files []File
		want  string
	}{
		{"no files", nil, "no files"},
		{"missing", []File{{Path: "/a", From: filepath.Join(dir, "gone")}}, "gone"},
		{"directory", []File{{Path: "/a", From: dir}}, "no regular file"},
		{"twice", []File{{Path: "/a", Text: "1"}, {Path: "a", Text: "2"}}, "/a stands there twice"},
		{"below a file", []File{{Path: "/a", Text: "1"}, {Path: "/a/b", Text: "2"}}, "/a is a file"},
		{"no path", []File{{Path: "/..", Text: "1"}}, "no path"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Build(Spec{Ref: "x:1", Files: c.files})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "x:1") {
				t.Errorf("got %v, want x:1 and %q in it", err, c.want)
			}
		})
	}
	if err := WriteArchive(filepath.Join(dir, "x.tar"), Spec{Ref: "Not A Reference", Files: []File{{Path: "/a"}}}); err == nil || !strings.Contains(err.Error(), "Not A Reference") {
		t.Errorf("got %v", err)
	}
}

// What ldd says about a program of this machine, without running it.
func TestLibrariesAreThoseThatTheLoaderWants(t *testing.T) {
	program, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash, which is the program with shared libraries that this asks about")
	}
	files, err := Libraries(program)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		t.Skipf("ldd: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "linux-vdso") {
			continue
		}
		want := filepath.Base(fields[0])
		if !slices.ContainsFunc(files, func(f File) bool { return filepath.Base(f.Path) == want }) {
			t.Errorf("%s is missing, there are %v", want, files)
		}
	}
	if self, err := os.Executable(); err == nil && os.Getenv("CGO_ENABLED") == "0" {
		if files, err := Libraries(self); err != nil || len(files) > 0 {
			t.Errorf("a static program needs %v, %v", files, err)
		}
	}
}
