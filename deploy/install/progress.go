package install

import "time"

// Progress is told what happens. All methods may be called from several goroutines.
type Progress interface {
	// Begin says that a component is worked on; what a component is waiting for follows with further calls.
	Begin(component, doing string)
	// Done and Failed end a component.
	Done(component string, took time.Duration)
	Failed(component string, took time.Duration)
	// Note is a sentence for the user.
	Note(text string)
}

// Silent tells nobody.
type Silent struct{}

// Begin does nothing.
func (Silent) Begin(string, string) {}

// Done does nothing.
func (Silent) Done(string, time.Duration) {}

// Failed does nothing.
func (Silent) Failed(string, time.Duration) {}

// Note does nothing.
func (Silent) Note(string) {}
