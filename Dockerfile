# docker build -t finetune-serve . && docker run --read-only -p 127.0.0.1:8000:8000 -v "$PWD/export:/models:ro" finetune-serve
# tests/scripts/test_serve.py carries out these steps.
FROM python:3.13-slim
WORKDIR /app
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
    print(*p['optional-dependencies']['serve'], sep='\n')" > requirements.txt \
    && pip install --no-cache-dir -r requirements.txt
COPY project/*.py project/
COPY project/static/ project/static/
COPY scripts/serve.py scripts/
ENV PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
CMD ["python", "scripts/serve.py", "--host", "0.0.0.0", "--model", "/models/model.int8.onnx"]
