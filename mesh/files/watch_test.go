package files

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-mesh/weft/mesh"
)

func service(name string, port int) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec:\n  clusterIP: 10.96.0.1\n  ports: [{name: http, port: %d}]\n", name, port)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// replace writes a file the way careful programs do.
func replace(t *testing.T, path, text string) {
	t.Helper()
	tmp := filepath.Join(filepath.Dir(path), ".tmp-"+filepath.Base(path))
	write(t, tmp, text)
	if err := os.Rename(tmp, path); err != nil {
		t.Fatal(err)
	}
}

// follower keeps the state that the changes add up to, and what each of them was.
type follower struct {
	t       *testing.T
	changes <-chan Change
	objects map[string]mesh.Object // by "Kind ns/name"
	errors  []error
	log     []string // "+Service default/a", "-..."
}

func follow(t *testing.T, paths ...string) *follower {
	t.Helper()
	ch, err := Watch(t.Context(), paths...)
	if err != nil {
		t.Fatal(err)
	}
	f := &follower{t: t, changes: ch, objects: map[string]mesh.Object{}}
	f.take(<-ch)
	return f
}

func (f *follower) take(c Change) {
	for _, k := range c.Delete {
		delete(f.objects, k.String())
		f.log = append(f.log, "-"+k.String())
	}
	for _, o := range c.Apply {
		k, err := mesh.KeyOf(o.Object)
		if err != nil {
			f.t.Fatal(err)
		}
		f.objects[k.String()] = o
		f.log = append(f.log, "+"+k.String())
	}
	f.errors = c.Errors
}

// until takes changes until a condition holds.
func (f *follower) until(what string, ok func() bool) {
	f.t.Helper()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case c := <-f.changes:
			f.take(c)
		case <-deadline:
			f.t.Fatalf("waited for %s; have %v, errors %v", what, f.names(), f.errors)
		}
	}
}

func (f *follower) names() []string {
	var out []string
	for k := range f.objects {
		out = append(out, strings.TrimPrefix(k, "Service default/"))
	}
	slices.Sort(out)
	return out
}

func (f *follower) has(names ...string) func() bool {
	return func() bool { return slices.Equal(f.names(), names) }
}

func TestAChangedFileChangesOnlyItsObjects(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", service("a", 80)+"---\n"+service("b", 80))
	write(t, dir+"/c.json", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"c"},"spec":{"ports":[{"port":80}]}}`)
	f := follow(t, dir)
	f.until("the initial state", f.has("a", "b", "c"))
	f.log = nil
	write(t, dir+"/a.yaml", service("a", 80)+"---\n"+service("b", 81))
	f.until("a change", func() bool { return len(f.log) > 0 })
	if !slices.Equal(f.log, []string{"+Service default/b"}) {
		t.Errorf("changed: %v; only b did", f.log)
	}
}

func TestADeletedFileTakesItsObjectsAlong(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", service("a", 80))
	write(t, dir+"/sub/b.yaml", service("b", 80))
	f := follow(t, dir)
	f.until("the initial state", f.has("a", "b"))
	if err := os.RemoveAll(dir + "/sub"); err != nil {
		t.Fatal(err)
	}
	f.until("b to go", f.has("a"))
	if err := os.Remove(dir + "/a.yaml"); err != nil {
		t.Fatal(err)
	}
	f.until("a to go", f.has())
}

func TestABrokenFileKeepsWhatItSaidBefore(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/a.yaml"
	write(t, path, service("a", 80)+"---\n"+service("b", 80))
	f := follow(t, dir)
	f.until("the initial state", f.has("a", "b"))
	f.log = nil
	replace(t, path, service("a", 99)+"---\n"+strings.Replace(service("b", 80), "ports", "porst", 1))
	f.until("an error", func() bool { return len(f.errors) == 1 })
	want := path + `:13: document 2: Service b: spec.porst: unknown field; did you mean "ports"?`
	if f.errors[0].Error() != want {
		t.Errorf("error is\n%s\nwant\n%s", f.errors[0], want)
	}
	if len(f.log) > 0 {
		t.Errorf("half of a broken file was applied: %v", f.log)
	}
	replace(t, path, service("a", 99))
	f.until("the file to be mended", func() bool { return len(f.errors) == 0 && len(f.objects) == 1 })
}

func TestAFileWrittenInPlaceIsNeverSeenEmpty(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/a.yaml"
	write(t, path, service("a", 80))
	f := follow(t, dir)
	f.until("the initial state", f.has("a"))
	for port := 81; port < 86; port++ {
		file, err := os.Create(path) // truncates
		if err != nil {
			t.Fatal(err)
		}
		text := service("a", port)
		for _, part := range []string{text[:20], text[20:]} {
			if _, err := file.WriteString(part); err != nil {
				t.Fatal(err)
			}
		}
		file.Close()
		f.until("the new port", func() bool {
			return strings.Contains(fmt.Sprint(f.objects["Service default/a"].Object), fmt.Sprintf("Port:%d", port))
		})
	}
	for _, l := range f.log {
		if l == "-Service default/a" {
			t.Errorf("a was deleted for a moment: %v", f.log)
		}
	}
}

func TestEditorsThatRemoveAndRecreateDoNotDeleteObjects(t *testing.T) {
	dir := t.TempDir()
	path := dir + "/a.yaml"
	write(t, path, service("a", 80))
	f := follow(t, path) // the file itself is named
	f.until("the initial state", f.has("a"))
	f.log = nil
	if err := os.Rename(path, path+"~"); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/.a.yaml.swp", "garbage: [")
	write(t, path, service("a", 81))
	f.until("the change", func() bool { return len(f.log) > 0 })
	if !slices.Equal(f.log, []string{"+Service default/a"}) || len(f.errors) > 0 {
		t.Errorf("log %v, errors %v", f.log, f.errors)
	}
}

func TestConfigMapVolumesAreFollowedThroughTheirDataLink(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/..2026_1/mesh.yaml", service("a", 80))
	link := func(target, name string) {
		t.Helper()
		if err := os.Symlink(target, dir+"/.link"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(dir+"/.link", name); err != nil {
			t.Fatal(err)
		}
	}
	link("..2026_1", dir+"/..data")
	link("..data/mesh.yaml", dir+"/mesh.yaml")
	for _, path := range []string{dir, dir + "/mesh.yaml"} {
		f := follow(t, path)
		f.until("the initial state", func() bool { return len(f.objects) == 1 })
		next := "b" + fmt.Sprint(len(path))
		write(t, dir+"/..2026_"+next+"/mesh.yaml", service(next, 80))
		link("..2026_"+next, dir+"/..data")
		f.until("the swapped content", f.has(next))
	}
}

func TestDirectoriesCreatedLaterAreFollowed(t *testing.T) {
	dir := t.TempDir()
	f := follow(t, dir)
	write(t, dir+"/x/y/z/a.yaml", service("a", 80))
	f.until("a file in new directories", f.has("a"))
	write(t, dir+"/x/y/z/b.yaml", service("b", 80))
	f.until("a second file there", f.has("a", "b"))
	if err := os.Rename(dir+"/x", dir+"/w"); err != nil {
		t.Fatal(err)
	}
	f.until("the moved files", func() bool {
		return f.has("a", "b")() && strings.Contains(f.objects["Service default/a"].File, "/w/")
	})
}

func TestAnObjectInTwoFilesIsAnErrorThatNamesBoth(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", service("a", 80))
	f := follow(t, dir)
	f.until("the initial state", f.has("a"))
	write(t, dir+"/b.yaml", service("b", 80)+"---\n"+service("a", 99))
	f.until("an error", func() bool { return len(f.errors) == 1 })
	want := fmt.Sprintf("%s/b.yaml:8: Service default/a: this object is written twice; the first is in %s/a.yaml:1: remove one of them", dir, dir)
	if f.errors[0].Error() != want {
		t.Errorf("error is\n%s\nwant\n%s", f.errors[0], want)
	}
	if !f.has("a")() {
		t.Errorf("b.yaml was half-applied: %v", f.names())
	}
	if err := os.Remove(dir + "/a.yaml"); err != nil {
		t.Fatal(err)
	}
	f.until("b.yaml to take over", func() bool { return f.has("a", "b")() && len(f.errors) == 0 })
}

func TestAnObjectThatMovesToAnotherFileIsNotDeleted(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", service("a", 80))
	f := follow(t, dir)
	f.log = nil
	if err := os.Rename(dir+"/a.yaml", dir+"/z.yaml"); err != nil {
		t.Fatal(err)
	}
	f.until("the move", func() bool { return strings.HasSuffix(f.objects["Service default/a"].File, "z.yaml") })
	if slices.Contains(f.log, "-Service default/a") || len(f.errors) > 0 {
		t.Errorf("a was deleted or disputed for a moment: %v, %v", f.log, f.errors)
	}
}

func TestAMissingPathIsAnErrorAtOnce(t *testing.T) {
	if _, err := Watch(t.Context(), t.TempDir()+"/nothing"); err == nil || !strings.Contains(err.Error(), "nothing") {
		t.Errorf("error %v does not name the path", err)
	}
}

func TestADirectoryThatVanishesKeepsTheMesh(t *testing.T) {
	dir := t.TempDir() + "/conf"
	write(t, dir+"/a.yaml", service("a", 80))
	f := follow(t, dir)
	f.until("the initial state", f.has("a"))
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	f.until("an error", func() bool { return len(f.errors) == 1 })
	if !f.has("a")() {
		t.Errorf("the mesh was forgotten: %v", f.names())
	}
	write(t, dir+"/b.yaml", service("b", 80))
	f.until("the directory's return", f.has("b"))
}

func TestTheChannelClosesWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ch, err := Watch(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	<-ch
	cancel()
	select {
	case _, open := <-ch:
		if open {
			t.Error("a change came after the end")
		}
	case <-time.After(10 * time.Second):
		t.Error("the channel stayed open")
	}
}
