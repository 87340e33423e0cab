// productpage is the page a visitor sees, made from details and reviews.
package main

import (
	"embed"
	"html/template"
	"log/slog"
	"net/http"
	"strings"

	"github.com/weft-mesh/weft/samples/bookinfo/httpd"
)

//go:embed page.html
var files embed.FS

type page struct {
	User           string
	Details        map[string]any
	DetailsProblem string
	Reviews        reviews
	ReviewsProblem string
}

type reviews struct {
	Podname string
	Version string
	Reviews []struct {
		Reviewer, Text string
		Rating         *struct {
			Stars        int
			Color, Error string
		}
	}
}

func main() {
	details := "http://" + httpd.Env("DETAILS_HOSTNAME", "details") + ":" + httpd.Env("DETAILS_SERVICE_PORT", "9080") + "/details/"
	reviewsURL := "http://" + httpd.Env("REVIEWS_HOSTNAME", "reviews") + ":" + httpd.Env("REVIEWS_SERVICE_PORT", "9080") + "/reviews/"
	html := template.Must(template.New("page.html").Funcs(template.FuncMap{
		"stars": func(n int) string { return strings.Repeat("★", max(0, min(n, 5))) },
	}).ParseFS(files, "page.html"))

	// identify sets the header that routes by user are written for.
	identify := func(r *http.Request) string {
		user := ""
		if cookie, err := r.Cookie("user"); err == nil {
			user = cookie.Value
			r.Header.Set("end-user", user)
		}
		return user
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /productpage", func(w http.ResponseWriter, r *http.Request) {
		p := page{User: identify(r)}
		if _, err := httpd.GetJSON(r, details+"0", &p.Details); err != nil {
			slog.Warn("no details", "error", err)
			p.DetailsProblem = "Sorry, product details are currently unavailable for this book."
		}
		if _, err := httpd.GetJSON(r, reviewsURL+"0", &p.Reviews); err != nil {
			slog.Warn("no reviews", "error", err)
			p.ReviewsProblem = "Sorry, product reviews are currently unavailable for this book."
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		if err := html.Execute(w, p); err != nil {
			slog.Warn("page not delivered", "error", err)
		}
	})
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "user", Value: r.FormValue("username"), Path: "/", HttpOnly: true})
		http.Redirect(w, r, "/productpage", http.StatusSeeOther)
	})
	mux.HandleFunc("GET /logout", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "user", Path: "/", MaxAge: -1})
		http.Redirect(w, r, "/productpage", http.StatusSeeOther)
	})
	mux.HandleFunc("GET /api/v1/products", func(w http.ResponseWriter, _ *http.Request) {
		httpd.WriteJSON(w, http.StatusOK, []map[string]any{{"id": 0, "title": "The Comedy of Errors"}})
	})
	pass := func(base string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			identify(r)
			var out any
			status, err := httpd.GetJSON(r, base+r.PathValue("id"), &out)
			if err != nil {
				// What the mesh answered (a fault, a timeout) is what the caller sees.
				if status == 0 {
					status = http.StatusServiceUnavailable
				}
				httpd.WriteJSON(w, status, map[string]string{"error": err.Error()})
				return
			}
			httpd.WriteJSON(w, status, out)
		}
	}
	mux.HandleFunc("GET /api/v1/products/{id}", pass(details))
	mux.HandleFunc("GET /api/v1/products/{id}/reviews", pass(reviewsURL))
	httpd.Serve("productpage", mux)
}
