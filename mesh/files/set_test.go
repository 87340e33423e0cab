package files

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/weft-mesh/weft/mesh"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func objectsNamed(file string, version int, names ...string) []mesh.Object {
	var out []mesh.Object
	for _, n := range names {
		o := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: n, UID: "u"}}
		o.ResourceVersion = fmt.Sprint(version)
		out = append(out, mesh.Object{Object: o, File: file, Line: 1})
	}
	return out
}

// Whatever files say in whatever order: an object is in force from one file at most, the changes add up to what is in
// force, a file is in force as a whole or not at all, and without disputes everything is.
func TestFilesAreInForceAsAWholeAndOnlyOneHasAnObject(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	for round := range 200 {
		s := newSet()
		says := map[string]map[string]int{} // what each file says: object -> version
		state := map[string]string{}        // what the changes add up to: object -> file and version
		for step := range 30 {
			for range 1 + rng.IntN(3) {
				file := fmt.Sprint("f", rng.IntN(4))
				switch rng.IntN(6) {
				case 0:
					s.read(file, nil, nil, errors.New("broken"))
					delete(says, file)
					says[file] = nil
				default:
					want := map[string]int{}
					var list []mesh.Object
					for range rng.IntN(4) {
						n := fmt.Sprint("o", rng.IntN(6))
						if _, twice := want[n]; !twice {
							want[n] = step
							list = append(list, objectsNamed(file, step, n)...)
						}
					}
					s.read(file, list, nil, nil)
					says[file] = want
				}
			}
			apply, remove := s.settle()
			for _, k := range remove {
				if _, had := state[k.Name]; !had {
					t.Fatalf("round %d: %s was deleted twice", round, k)
				}
				delete(state, k.Name)
			}
			for _, o := range apply {
				m := o.Object.(*corev1.Service)
				state[m.Name] = o.File + "@" + m.ResourceVersion
			}
			inForce := map[string]string{}
			for file, c := range s.good {
				for k, o := range c {
					if other, twice := inForce[k.Name]; twice {
						t.Fatalf("round %d: %s is in force from %s and %s", round, k, file, other)
					}
					inForce[k.Name] = file + "@" + o.Object.(*corev1.Service).ResourceVersion
				}
			}
			if !maps.Equal(inForce, state) {
				t.Fatalf("round %d: in force %v, the changes add up to %v", round, inForce, state)
			}
			claims, disputed := map[string]bool{}, false
			for _, objects := range says {
				for n := range objects {
					disputed = disputed || claims[n]
					claims[n] = true
				}
			}
			for file, objects := range says {
				if objects == nil { // broken: what it said before may dispute others
					disputed = disputed || len(s.good[file]) > 0
				}
			}
			if disputed {
				continue
			}
			if len(s.next) > 0 {
				t.Fatalf("round %d: nobody disputes anything and yet %v waits: %v", round, s.next, s.broken)
			}
			for file, objects := range says {
				if objects != nil && len(s.good[file]) != len(objects) {
					t.Fatalf("round %d: %s says %v, in force is %v", round, file, objects, s.good[file])
				}
			}
		}
	}
}

func TestTwoFilesMaySwapTheirObjects(t *testing.T) {
	s := newSet()
	s.read("a", objectsNamed("a", 1, "x"), nil, nil)
	s.read("b", objectsNamed("b", 1, "y"), nil, nil)
	s.settle()
	s.read("a", objectsNamed("a", 2, "y"), nil, nil)
	s.read("b", objectsNamed("b", 2, "x"), nil, nil)
	apply, remove := s.settle()
	if len(apply) != 2 || len(remove) != 0 || len(s.broken) != 0 {
		t.Errorf("applied %v, removed %v, broken %v", apply, remove, s.broken)
	}
}
