# A saved detector behind HTTP, on the CPU:
#     docker build -t skjepa .
#     docker run --read-only --tmpfs /tmp -p 8000:8000 -v "$PWD/detector:/detector:ro" skjepa
FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /opt/skjepa
# The CPU build of torch: a tenth of the size of the one with CUDA.
RUN /opt/skjepa/bin/pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY skjepa ./skjepa
RUN /opt/skjepa/bin/pip install --no-cache-dir ".[serve]"

FROM python:3.12-slim
RUN useradd --create-home --uid 10001 skjepa
COPY --from=build /opt/skjepa /opt/skjepa
USER skjepa
WORKDIR /home/skjepa
ENV PATH="/opt/skjepa/bin:$PATH" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["skjepa", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["/detector"]
