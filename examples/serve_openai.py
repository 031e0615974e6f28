"""An embeddings endpoint in OpenAI's form, `dimensions` included, on the standard library alone.

    python examples/serve_openai.py my-model --port 8000
    curl localhost:8000/v1/embeddings -d '{"input": ["some text"], "model": "my-model", "dimensions": 48}'

A cut vector is scaled to length 1 again, as OpenAI's API does it. For load, use a real server; `smec-st verify` checks
that text-embeddings-inference and vLLM give the same vectors.
"""

import argparse
import base64
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from sentence_transformers import SentenceTransformer


class BadRequest(ValueError):
    """What the caller can mend."""


def sizes_of(model):
    """Sizes that may be asked for: those in the model's own config, or the full one."""
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    return sorted({model.get_embedding_dimension(), *(getattr(config, "matryoshka_dimensions", None) or ())})


def answer(model, name, request):
    """The response's JSON for a request's JSON."""
    texts = [request["input"]] if isinstance(request.get("input"), str) else request.get("input")
    if not texts or not all(isinstance(text, str) for text in texts):
        raise BadRequest("`input` must be a text or a list of texts")
    sizes = sizes_of(model)
    dim = request.get("dimensions", sizes[-1])
    if dim not in sizes:
        raise BadRequest(f"`dimensions` must be one of {', '.join(map(str, sizes))}, got {dim}")
    vectors = model.encode(texts, truncate_dim=dim, normalize_embeddings=True, show_progress_bar=False)
    rows = np.asarray(vectors, dtype="<f4")
    if request.get("encoding_format") == "base64":
        values = [base64.b64encode(row.tobytes()).decode() for row in rows]
    else:
        values = rows.tolist()
    tokens = int(sum(mask.sum() for mask in model.preprocess(texts)["attention_mask"]))
    return {
        "object": "list",
        "model": name,
        "data": [{"object": "embedding", "index": i, "embedding": value} for i, value in enumerate(values)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def make_server(model_id, port):
    """A server that is ready to run."""
    model = SentenceTransformer(model_id)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802
            status, body = 404, {"error": {"message": f"no such path: {self.path}"}}
            if self.path == "/v1/embeddings":
                try:
                    content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                    status, body = 200, answer(model, model_id, json.loads(content))
                except (BadRequest, json.JSONDecodeError) as error:
                    status, body = 400, {"error": {"message": str(error), "type": "invalid_request_error"}}
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(arguments)
    with make_server(options.model, options.port) as server:
        print(f"listening on http://127.0.0.1:{server.server_address[1]}/v1/embeddings")
        server.serve_forever()


if __name__ == "__main__":
    main()
